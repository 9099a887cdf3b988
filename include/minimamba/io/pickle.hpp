// Reads the pickles in which torch.save writes a state dict. Nothing is ever executed: a pickle is a program that
// builds values on a stack. Only the instructions and the few names that a state dict needs are supported; anything
// else is rejected by name. The number of values is limited, so that no pickle takes more than some tens of megabytes.
#ifndef MINIMAMBA_IO_PICKLE_HPP
#define MINIMAMBA_IO_PICKLE_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "minimamba/io/file.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// A value that a pickle builds. Values refer to each other by index.
struct PickleValue {
  enum class Kind : std::uint8_t { none, boolean, integer, real, text, tuple, list, dict, global, storage, tensor };

  Kind kind = Kind::none;
  std::uint32_t count = 0;  // characters of a text or type name; values of a tuple, storage or tensor
  std::int64_t number = 0;  // an integer or boolean; the index of a list, dict or global; or where those begin
};

class Pickle {
 public:
  using Kind = PickleValue::Kind;

  /// Reads the bytes [begin, end) of a source. Throws FormatError.
  Pickle(const ByteSource& source, std::uint64_t begin, std::uint64_t end)
      : file_(source.name()), bytes_(source, begin, end) {
    while (!done_) step(bytes_.value<std::uint8_t>());
    if (bytes_.left() > 0) refuse("the end of the pickle", std::to_string(bytes_.left()) + " more bytes");
  }

  const PickleValue& root() const { return values_[stack_.front()]; }
  /// The characters of a text, or the name of a global with a space after its module.
  std::string_view text(const PickleValue& value) const {
    const auto first = static_cast<std::size_t>(value.number);
    if (value.kind == Kind::global && value.count == 0) return globals[first];
    return std::string_view(characters_).substr(first, value.count);
  }
  /// The parts of a tuple, storage or tensor; for a dict its keys and values in turn.
  std::span<const std::uint32_t> parts(const PickleValue& value) const {
    const auto first = static_cast<std::size_t>(value.number);
    if (value.kind == Kind::list || value.kind == Kind::dict) return growing_[first];
    return std::span(parts_).subspan(first, value.count);
  }
  const PickleValue& operator[](std::uint32_t index) const { return values_[index]; }

  static const char* name_of(Kind kind) {
    constexpr const char* names[] = {"None",   "a bool", "an int",   "a float",   "a str",   "a tuple",
                                     "a list", "a dict", "a global", "a storage", "a tensor"};
    return names[static_cast<std::size_t>(kind)];
  }

 private:
  // A tensor takes about 20 values and 20 parts, and what is stored with it may take as many. All limits together stay
  // below 30 MiB; the parts of every tuple, list and dict are counted.
  static constexpr std::size_t max_values = 600'000, max_characters = std::size_t{4} << 20, max_marks = 1000,
                               max_containers = 60'000;
  static constexpr std::string_view globals[] = {"collections OrderedDict",
                                                 "torch._utils _rebuild_tensor_v2",
                                                 "torch FloatStorage",
                                                 "torch HalfStorage",
                                                 "torch BFloat16Storage",
                                                 "torch DoubleStorage",
                                                 "torch LongStorage",
                                                 "torch IntStorage",
                                                 "torch ShortStorage",
                                                 "torch CharStorage",
                                                 "torch ByteStorage",
                                                 "torch BoolStorage",
                                                 "torch._utils _rebuild_parameter",
                                                 "torch._utils _rebuild_tensor_v3",
                                                 "torch.storage UntypedStorage"};

  static constexpr std::string_view rebuild_parameter = "torch._utils _rebuild_parameter",
                                    rebuild_tensor = "torch._utils _rebuild_tensor_v2",
                                    rebuild_typed_tensor = "torch._utils _rebuild_tensor_v3";

  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const {
    throw FormatError(file_, expected, found + " near byte " + std::to_string(bytes_.position()));
  }
  void limit(std::size_t count, std::size_t max, const char* what) const {
    if (count >= max) refuse("a pickle of at most " + std::to_string(max) + " " + what, "more");
  }

  void count_parts(std::size_t count) {
    limit(counted_parts_ + count, max_values, "parts");
    counted_parts_ += count;
  }

  void push(std::uint32_t index) {
    limit(stack_.size(), max_values, "values");
    stack_.push_back(index);
  }
  void make(PickleValue value) {
    limit(values_.size(), max_values, "values");
    values_.push_back(value);
    push(static_cast<std::uint32_t>(values_.size() - 1));
  }
  void make_range(Kind kind, std::size_t first, std::size_t count) {
    make({.kind = kind, .count = static_cast<std::uint32_t>(count), .number = static_cast<std::int64_t>(first)});
  }
  void make_number(Kind kind, std::int64_t number) { make({.kind = kind, .number = number}); }
  void make_growing(Kind kind) {
    limit(growing_.size(), max_containers, "lists and dicts");
    growing_.emplace_back();
    make({.kind = kind, .number = static_cast<std::int64_t>(growing_.size() - 1)});
  }
  void make_text(Kind kind, std::uint64_t size) {
    if (size > bytes_.left() || size > max_characters - characters_.size()) {
      refuse("texts within the pickle, of at most " + std::to_string(max_characters) + " bytes in all",
             std::to_string(size) + " bytes");
    }
    const std::size_t first = characters_.size();
    characters_.resize(first + static_cast<std::size_t>(size));
    bytes_.read(std::as_writable_bytes(std::span(characters_).subspan(first)));
    make_range(kind, first, static_cast<std::size_t>(size));
  }
  /// Pops the top `count` values of the stack and makes one value of them.
  void make_of(Kind kind, std::size_t count) {
    need(count);
    count_parts(count);
    const std::size_t first = parts_.size();
    parts_.insert(parts_.end(), stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    make_range(kind, first, count);
  }

  /// Checks that there are `count` values above the last mark.
  void need(std::size_t count) const {
    const std::size_t floor = marks_.empty() ? 0 : marks_.back();
    if (stack_.size() - floor < count) refuse("enough values on the stack", "too few");
  }
  std::uint32_t pop() {
    need(1);
    const std::uint32_t top = stack_.back();
    stack_.pop_back();
    return top;
  }
  std::size_t pop_mark() {
    if (marks_.empty()) refuse("a mark on the stack", "none");
    const std::size_t mark = marks_.back();
    marks_.pop_back();
    return stack_.size() - mark;
  }
  /// Moves the top `count` values into the container below them.
  void grow(Kind kind, std::size_t count) {
    need(count + 1);
    const PickleValue& container = values_[stack_[stack_.size() - count - 1]];
    if (container.kind != kind || (kind == Kind::dict && count % 2 != 0)) {
      refuse(kind == Kind::dict ? "keys and values for a dict" : "values for a list", name_of(container.kind));
    }
    auto& contents = growing_[static_cast<std::size_t>(container.number)];
    count_parts(count);
    contents.insert(contents.end(), stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
  }

  void memorise(std::uint64_t index) {
    need(1);
    limit(static_cast<std::size_t>(std::min<std::uint64_t>(index, max_values)), max_values, "memo entries");
    if (index >= memory_.size()) memory_.resize(static_cast<std::size_t>(index) + 1, nothing);
    memory_[static_cast<std::size_t>(index)] = stack_.back();
    ++memorised_;
  }
  void recall(std::uint64_t index) {
    if (index >= memory_.size() || memory_[static_cast<std::size_t>(index)] == nothing) {
      refuse("a value in memo entry " + std::to_string(index), "none");
    }
    push(memory_[static_cast<std::size_t>(index)]);
  }

  /// Whether a name is that of one of torch's types, which only describe a tensor: a storage type, or the element type
  /// of a tensor that has no storage type, such as float8_e4m3fn.
  static bool is_type(std::string_view name) {
    constexpr std::string_view module = "torch ", storage = "Storage",
                               types[] = {"float", "bfloat", "complex", "int", "uint", "bits", "quint", "qint"};
    if (!name.starts_with(module)) return false;
    name.remove_prefix(module.size());
    constexpr std::string_view letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
    if (name.find_first_not_of(letters) != name.npos) return false;
    return name.ends_with(storage) || std::any_of(std::begin(types), std::end(types),
                                                  [&](std::string_view type) { return name.starts_with(type); });
  }

  void make_global(const std::string& name) {
    const auto place = std::find(std::begin(globals), std::end(globals), name);
    if (place == std::end(globals) && is_type(name)) {
      limit(characters_.size() + name.size(), max_characters, "characters");
      characters_ += name;
      return make_range(Kind::global, characters_.size() - name.size(), name.size());
    }
    if (place == std::end(globals)) {
      std::string dotted = name;
      std::replace(dotted.begin(), dotted.end(), ' ', '.');
      refuse("a state dict of tensors, which uses only the names of torch's tensors and OrderedDict",
             "\"" + printable(dotted, 100) + "\"");
    }
    make_number(Kind::global, place - std::begin(globals));
  }
  std::string read_line() {
    std::string line;
    for (char c = bytes_.value<char>(); c != '\n'; c = bytes_.value<char>()) {
      if (line.size() == 200) refuse("a name of at most 200 characters", "a longer one");
      line += c;
    }
    return line;
  }
  /// Makes a global from its name on top of the stack and its module below.
  void make_global_of_stack() {
    need(2);
    const PickleValue name = values_[pop()], module = values_[pop()];
    if (name.kind != Kind::text || module.kind != Kind::text) refuse("the name of a global", name_of(name.kind));
    make_global(std::string(text(module)) + " " + std::string(text(name)));
  }

  /// Calls one of the few functions that a state dict needs.
  void reduce() {
    need(2);
    const std::uint32_t arguments_at = pop();
    const PickleValue function = values_[pop()], arguments = values_[arguments_at];
    const bool is_global = function.kind == Kind::global && arguments.kind == Kind::tuple;
    if (is_global && text(function) == globals[0] && arguments.count == 0) return make_growing(Kind::dict);
    if (is_global && (text(function) == rebuild_tensor || text(function) == rebuild_typed_tensor)) {
      return make({.kind = Kind::tensor, .count = arguments.count, .number = arguments.number});
    }
    if (is_global && text(function) == rebuild_parameter && arguments.count == 3) {  // a tensor and two settings
      const PickleValue data = values_[parts_[static_cast<std::size_t>(arguments.number)]];
      if (data.kind == Kind::tensor) return make(data);
    }
    refuse("a call that makes a tensor or an empty OrderedDict", "another call");
  }
  /// Attributes that torch keeps with the tensors, such as _metadata, are ignored.
  void build() {
    need(2);
    const PickleValue state = values_[pop()], object = values_[stack_.back()];
    if (object.kind != Kind::dict || state.kind != Kind::dict)
      refuse("a dict of attributes for a dict", name_of(state.kind));
  }
  void make_storage() {
    need(1);
    const PickleValue id = values_[pop()];
    if (id.kind != Kind::tuple) refuse("a tuple that describes a storage", name_of(id.kind));
    make({.kind = Kind::storage, .count = id.count, .number = id.number});
  }
  void make_long() {
    const auto size = bytes_.value<std::uint8_t>();
    if (size > 8) refuse("an integer of at most 8 bytes", std::to_string(size) + " bytes");
    std::array<std::byte, 8> digits{};
    bytes_.read(std::span(digits).first(size));
    const bool negative = size > 0 && std::to_integer<unsigned>(digits[size - 1U]) >= 0x80;
    if (negative) std::fill(digits.begin() + size, digits.end(), std::byte{0xFF});
    std::int64_t number = 0;
    std::memcpy(&number, digits.data(), sizeof(number));
    make_number(Kind::integer, number);
  }

  /// Executes one instruction; the names are those of Python's pickletools.
  void step(std::uint8_t code) {
    switch (code) {
      case 0x80:  // PROTO
        if (const auto version = bytes_.value<std::uint8_t>(); version > 5) {
          refuse("a pickle of protocol 2 to 5", std::to_string(version));
        }
        return;
      case 0x95:  // FRAME
        bytes_.value<std::uint64_t>();
        return;
      case '.':  // STOP
        if (stack_.size() != 1 || !marks_.empty())
          refuse("one value at the end", std::to_string(stack_.size()) + " values");
        done_ = true;
        return;
      case '(':  // MARK
        limit(marks_.size(), max_marks, "marks");
        return marks_.push_back(stack_.size());
      case 'c': {  // GLOBAL
        const std::string module = read_line();
        return make_global(module + " " + read_line());
      }
      case 0x93:  // STACK_GLOBAL
        return make_global_of_stack();
      case 'R':  // REDUCE
        return reduce();
      case 'b':  // BUILD
        return build();
      case 'Q':  // BINPERSID
        return make_storage();
      case 'q':  // BINPUT
        return memorise(bytes_.value<std::uint8_t>());
      case 'r':  // LONG_BINPUT
        return memorise(bytes_.value<std::uint32_t>());
      case 0x94:  // MEMOIZE
        return memorise(memorised_);
      case 'h':  // BINGET
        return recall(bytes_.value<std::uint8_t>());
      case 'j':  // LONG_BINGET
        return recall(bytes_.value<std::uint32_t>());
      default:
        return step_value(code);
    }
  }
  void step_value(std::uint8_t code) {
    switch (code) {
      case 'N':  // NONE
        return make({});
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        return make_number(Kind::boolean, code == 0x88 ? 1 : 0);
      case 'J':  // BININT
        return make_number(Kind::integer, bytes_.value<std::int32_t>());
      case 'K':  // BININT1
        return make_number(Kind::integer, bytes_.value<std::uint8_t>());
      case 'M':  // BININT2
        return make_number(Kind::integer, bytes_.value<std::uint16_t>());
      case 0x8A:  // LONG1
        return make_long();
      case 'G':  // BINFLOAT, whose value nothing needs
        bytes_.value<std::uint64_t>();
        return make({.kind = Kind::real});
      case 0x8C:  // SHORT_BINUNICODE
        return make_text(Kind::text, bytes_.value<std::uint8_t>());
      case 'X':  // BINUNICODE
        return make_text(Kind::text, bytes_.value<std::uint32_t>());
      case 0x8D:  // BINUNICODE8
        return make_text(Kind::text, bytes_.value<std::uint64_t>());
      case ')':  // EMPTY_TUPLE
        return make_of(Kind::tuple, 0);
      case 't':  // TUPLE
        return make_of(Kind::tuple, pop_mark());
      case 0x85:  // TUPLE1
      case 0x86:  // TUPLE2
      case 0x87:  // TUPLE3
        return make_of(Kind::tuple, code - 0x84U);
      case ']':  // EMPTY_LIST
        return make_growing(Kind::list);
      case '}':  // EMPTY_DICT
        return make_growing(Kind::dict);
      case 'a':  // APPEND
        return grow(Kind::list, 1);
      case 'e':  // APPENDS
        return grow(Kind::list, pop_mark());
      case 's':  // SETITEM
        return grow(Kind::dict, 2);
      case 'u':  // SETITEMS
        return grow(Kind::dict, pop_mark());
      default:
        refuse("an instruction that a state dict needs", "instruction " + std::to_string(code));
    }
  }

  static constexpr std::uint32_t nothing = 0xFFFFFFFF;

  std::string file_;
  SequentialBytes bytes_;
  std::deque<PickleValue> values_;  // a deque, so that growing never copies them
  std::vector<std::uint32_t> stack_, memory_, parts_;
  std::vector<std::size_t> marks_;                   // sizes of the stack
  std::vector<std::vector<std::uint32_t>> growing_;  // contents of lists and dicts
  std::string characters_;
  std::uint64_t memorised_ = 0;
  std::size_t counted_parts_ = 0;  // of all values
  bool done_ = false;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
