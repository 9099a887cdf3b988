// Any bytes at all as text, and as ids: encoding then decoding gives well-formed text back, streamed or not.
#include "minimamba/text.hpp"

namespace mm = minimamba;

namespace {

mm::Tokenizer small_tokenizer() {
  mm::TokenizerParts parts;
  for (unsigned x = 0; x < 256; ++x)
    mm::detail::append_utf8(parts.tokens.emplace_back(), mm::detail::byte_character(x));
  for (const char* const token : {"ab", "abc", "\u0120a", "aa"}) parts.tokens.emplace_back(token);
  parts.merges = {"a b", "ab c", "\u0120 a", "a a"};
  mm::AddedToken token;
  token.id = 260;
  token.content = "<a>";
  parts.added.push_back(token);
  return mm::Tokenizer(parts);
}

/// SentencePiece's kind: with scores as in GGUF, or with merges as in tokenizer.json.
mm::Tokenizer small_sentence_piece(bool scored) {
  mm::TokenizerParts parts;
  for (unsigned x = 0; x < 256; ++x) parts.tokens.push_back(mm::detail::byte_name(x));
  for (const char* const token : {"\u2581", "a", "b", "ab", "\u2581a", "\u2581\u2581", "\u00E9a", "aa"}) {
    parts.tokens.emplace_back(token);
  }
  parts.byte_fallback = true;
  mm::detail::set_spaces(parts, true);
  for (std::size_t id = 0; scored && id < parts.tokens.size(); ++id) parts.scores.push_back(static_cast<float>(id % 3));
  if (!scored) parts.merges = {"a b", "\u2581 \u2581", "\u2581 a", "a a"};
  return mm::Tokenizer(parts);
}

std::string streamed(const mm::Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  mm::StreamingDecoder decoder(tokenizer);
  std::string text;
  for (const std::int32_t id : ids) text += decoder.push(id);
  return text + decoder.finish();
}

void check_sentence_piece(std::string_view text, const std::vector<std::int32_t>& any) {
  static const mm::Tokenizer scored = small_sentence_piece(true), merged = small_sentence_piece(false);
  const std::string valid = mm::detail::well_formed(text);
  for (const mm::Tokenizer* const tokenizer : {&scored, &merged}) {
    const auto ids = tokenizer->encode(text);
    const std::string back = tokenizer->decode(ids);
    if (valid.find("\u2581") == valid.npos && back != valid) __builtin_trap();
    if (streamed(*tokenizer, ids) != back) __builtin_trap();
  }
  if (streamed(scored, any) != scored.decode(any)) __builtin_trap();
  if (!mm::detail::is_well_formed(streamed(merged, any) + merged.decode(any))) __builtin_trap();
}

/// Every step there is: what comes out are parts of the text, in its order.
void check_steps(std::string_view text) {
  using Kind = mm::PreTokenizer::Kind;
  for (const auto form : {mm::detail::NormalForm::nfd, mm::detail::NormalForm::nfkc, mm::detail::NormalForm::nfkd}) {
    const std::string normal = mm::detail::normalized(text, form);
    if (mm::detail::normalized(normal, form) != normal) __builtin_trap();
  }
  std::vector<mm::PreTokenizer> steps;
  for (const auto kind : {Kind::digits, Kind::punctuation, Kind::whitespace, Kind::whitespace_split}) {
    steps.push_back({.kind = kind});
  }
  for (const auto& [regex, known] : mm::detail::known_patterns) {
    steps.push_back({.kind = Kind::split, .regex = std::string(regex)});
  }
  for (int behavior = 0; behavior < 5; ++behavior) {
    steps.push_back({.kind = Kind::split,
                     .behavior = static_cast<mm::SplitBehavior>(behavior),
                     .invert = behavior % 2 == 1,
                     .pattern = "a"});
  }
  for (const mm::PreTokenizer& step : steps) {
    const bool removes = step.kind == Kind::whitespace || step.kind == Kind::whitespace_split ||
                         step.behavior == mm::SplitBehavior::removed;
    std::string joined;
    const mm::detail::PreTokenizerSteps split({step}, {}, "steps");
    split.split(text, [&](std::string_view piece) { joined += piece; });
    if (removes ? joined.size() > text.size() : joined != text) __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  static const mm::Tokenizer tokenizer = small_tokenizer();
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (tokenizer.decode(tokenizer.encode(text)) != mm::detail::well_formed(text)) __builtin_trap();
  const std::string normal = mm::detail::nfc(mm::detail::well_formed(text));
  if (mm::detail::nfc(normal) != normal) __builtin_trap();
  if (!text.empty()) check_steps(mm::detail::well_formed(text));

  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i + 1 < size; i += 2) ids.push_back((data[i] | (data[i + 1] & 1) << 8) % tokenizer.size());
  if (streamed(tokenizer, ids) != tokenizer.decode(ids)) __builtin_trap();
  check_sentence_piece(text, ids);
  return 0;
}
