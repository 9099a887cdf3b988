// save_c_array: weights as constants of C++. tests/embedded compiles what it writes.
#include "minimamba/io/c_array.hpp"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "support/files.hpp"
#include "support/models.hpp"

namespace c_array_test {

using namespace minimamba;
using support::Folder;
using support::read_text;

using Model = Mamba<double, ReferenceBackend>;

Model model_of(const MambaConfig& config) { return support::trained_looking_model<Model>(config); }
MambaConfig small() {
  return {
      .d_model = 8, .n_layer = 2, .vocab_size = 13, .d_state = 4, .d_conv = 3, .bias = true, .tie_embeddings = false};
}

/// The numbers of the member `name`, at its `which`-th place in the text.
std::vector<double> numbers_of(const std::string& text, const std::string& name, int which = 0) {
  std::size_t place = 0;
  for (int i = 0; i <= which; ++i) {
    place = text.find("." + name + " = {{\n", place);
    if (place == text.npos) return {};
    ++place;
  }
  std::vector<double> numbers;
  const char* at = text.c_str() + text.find('\n', place);
  const char* const end = text.c_str() + text.find("\n}},\n", place);
  while (at < end) {
    char* after = nullptr;
    const double number = std::strtod(at, &after);
    if (after == at) {
      ++at;
    } else {
      numbers.push_back(number);
      at = after;
    }
  }
  return numbers;
}

template <class Parameter>
void expect_floats(const std::vector<double>& numbers, const Parameter& parameter, const Model& model,
                   std::size_t rows) {
  support::HostMatrix<double> values(parameter.rows(), parameter.cols());
  parameter.download(model.backend(), 0, values.view());
  ASSERT_EQ(numbers.size(), rows * values.cols);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    EXPECT_EQ(static_cast<float>(numbers[i]), static_cast<float>(values.values[i])) << i;
  }
}

TEST(CArray, HoldsEveryParameterAsTheFloatItIs) {
  const Folder folder;
  const Model model = model_of(small());
  save_c_array(model, folder / "my-model.hpp", {.matrices = DType::F32});
  const std::string text = read_text(folder / "my-model.hpp");
  for (const char* const line :
       {"namespace my_model {", "std::size_t d_model = 8;", "std::size_t n_layer = 2;", "std::size_t vocab_size = 13;",
        "std::size_t d_inner = 16;", "std::size_t dt_rank = 1;", "std::size_t d_state = 4;", "std::size_t d_conv = 3;",
        "bool conv_bias = true;", "bool bias = true;", "bool tie_embeddings = false;", "double norm_epsilon = 1e-05;",
        "using Weight = float;"}) {
    EXPECT_NE(text.find(line), text.npos) << line;
  }
  expect_floats(numbers_of(text, "embedding_weight"), model.embedding.weight, model, 13);
  expect_floats(numbers_of(text, "lm_head_weight"), model.lm_head.weight, model, 13);
  expect_floats(numbers_of(text, "norm_f_weight"), model.norm_f.weight, model, 1);
  for (int layer = 0; layer < 2; ++layer) {
    const auto& mixer = model.layers[static_cast<std::size_t>(layer)].mixer;
    const auto expect = [&](const char* name, const auto& parameter) {
      expect_floats(numbers_of(text, name, layer), parameter, model, parameter.rows());
    };
    expect("norm_weight", model.layers[static_cast<std::size_t>(layer)].norm.weight);
    expect("A", mixer.A);
    expect("D", mixer.D);
    expect("in_proj_weight", mixer.in_proj.weight);
    expect("in_proj_bias", mixer.in_proj.bias);
    expect("conv1d_weight", mixer.conv1d.weight);
    expect("conv1d_bias", mixer.conv1d.bias);
    expect("x_proj_weight", mixer.x_proj.weight);
    expect("dt_proj_weight", mixer.dt_proj.weight);
    expect("dt_proj_bias", mixer.dt_proj.bias);
    expect("out_proj_weight", mixer.out_proj.weight);
    expect("out_proj_bias", mixer.out_proj.bias);
  }
}

TEST(CArray, HoldsBlocksOfQ8) {
  const Folder folder;
  const Model model = model_of({.d_model = 40, .n_layer = 1, .vocab_size = 5});
  save_c_array(model, folder / "small.hpp", {.matrices = DType::Q8_0});
  const std::string text = read_text(folder / "small.hpp");
  EXPECT_NE(text.find("using Weight = minimamba::q8;"), text.npos);
  support::HostMatrix<double> values(8, 40);
  model.embedding.weight.download(model.backend(), 0, values.view());
  const std::vector<double> numbers = numbers_of(text, "embedding_weight");
  ASSERT_EQ(numbers.size(), 5U * 2 * 33);  // a scale and 32 integers a block
  std::size_t next = 0;
  for (std::size_t i = 0; i < 5; ++i) {
    Format<q8>::Block blocks[2];
    Format<q8>::pack(values.view().row(i).data(), 40, blocks);
    for (const auto& block : blocks) {
      EXPECT_EQ(numbers[next++], block.scale.bits);
      for (const std::int8_t value : block.values) EXPECT_EQ(numbers[next++], value);
    }
  }
  const std::vector<double> selection = numbers_of(text, "x_proj_weight");  // bf16, as in every q8 model
  support::HostMatrix<double> x_proj(35, 80);
  model.layers[0].mixer.x_proj.weight.download(model.backend(), 0, x_proj.view());
  ASSERT_EQ(selection.size(), x_proj.values.size());
  for (std::size_t i = 0; i < selection.size(); ++i) EXPECT_EQ(selection[i], bf16(x_proj.values[i]).bits);
}

/// A file of blocks keeps them as they are.
TEST(CArray, TakesTheBlocksOfAFile) {
  const Folder folder;
  const Model model = model_of({.d_model = 32, .n_layer = 1, .vocab_size = 8});
  save_gguf(model, folder / "model.gguf", {.matrices = DType::Q8_0});
  save_c_array(open_checkpoint(folder / "model.gguf"), folder / "a.hpp", {.matrices = DType::Q8_0});
  const auto loaded = load<Mamba<double, ReferenceBackend, q8>>(folder / "model.gguf");
  save_c_array(loaded, folder / "b" / "a.hpp");
  EXPECT_EQ(read_text(folder / "a.hpp"), read_text(folder / "b" / "a.hpp"));
}

TEST(CArray, OfACheckpointIsThatOfItsModel) {
  const Folder folder;
  const Model model = model_of(small());
  save(model, folder / "model");
  save_c_array(model, folder / "a.hpp", {.matrices = DType::F32});
  save_c_array(open_checkpoint(folder / "model"), folder / "b" / "a.hpp", {.matrices = DType::F32});
  EXPECT_EQ(read_text(folder / "a.hpp"), read_text(folder / "b" / "a.hpp"));
}

TEST(CArray, NamesANamespaceByItsFile) {
  EXPECT_EQ(detail::namespace_of("a/b/my-model.v2.hpp"), "my_model_v2");
  EXPECT_EQ(detail::namespace_of("130m.hpp"), "model_130m");
  EXPECT_EQ(detail::namespace_of("minimamba.hpp"), "model_minimamba");
  EXPECT_EQ(detail::namespace_of("new.hpp"), "model_new");  // a keyword
  EXPECT_EQ(detail::namespace_of("xor_eq.hpp"), "model_xor_eq");
  EXPECT_EQ(detail::namespace_of("xor"), "model_xor");
  EXPECT_EQ(detail::namespace_of("newer.hpp"), "newer");
  for (const char* const name : {"main", "time", "exp", "index", "y0", "stat", "linux", "option"}) {
    EXPECT_EQ(detail::namespace_of(std::string(name) + ".hpp"), std::string("model_") + name);
  }
}

/// "time.hpp" would be a namespace of the name of a function, and "time.h" would hide a header.
TEST(CArray, SaysThatANamespaceHasAnotherName) {
  const Folder folder;
  const Model model = model_of(small());
  std::vector<std::string> notes;
  SaveOptions options{.matrices = DType::F32, .on_note = [&](const std::string& note) { notes.push_back(note); }};
  save_c_array(model, folder / "play-1.h", options);
  EXPECT_TRUE(notes.empty());
  save_c_array(model, folder / "time.hpp", options);
  ASSERT_EQ(notes.size(), 1U);
  EXPECT_NE(notes[0].find("time.hpp: its namespace is model_time, as time cannot be one in C++"), std::string::npos)
      << notes[0];
  EXPECT_NE(read_text(folder / "time.hpp").find("namespace model_time {"), std::string::npos);
}

template <class Error, class Call>
void expect_refused(const Call& call, const char* words) {
  try {
    call();
    ADD_FAILURE() << "expected: " << words;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

TEST(CArray, RefusesWhatItCannotHold) {
  const Folder folder;
  Model model = model_of(small());
  save_c_array(model, folder / "a.hpp", {.matrices = DType::F32});
  const std::string before = read_text(folder / "a.hpp");
  const auto save_as = [&](DType type) {
    return [&, type] { save_c_array(model, folder / "a.hpp", {.matrices = type}); };
  };
  expect_refused<ArgumentError>(save_as(DType::Q4_0), "F32 or Q8_0 in a C array, found Q4_0");
  expect_refused<ArgumentError>(save_as(DType::BF16), "F32 or Q8_0 in a C array, found BF16");
  support::HostMatrix<double> values(1, 8);
  values.values[3] = std::numeric_limits<double>::quiet_NaN();
  model.norm_f.weight.upload(model.backend(), 0, values.view());
  expect_refused<CheckpointError>(save_as(DType::F32), "norm_f.weight: expected finite values, found nan");
  values.values[3] = 1e300;
  model.norm_f.weight.upload(model.backend(), 0, values.view());
  expect_refused<CheckpointError>(save_as(DType::F32), "norm_f.weight");
  EXPECT_EQ(read_text(folder / "a.hpp"), before);
}

TEST(CArray, RefusesTheNameOfAStandardHeader) {
  const Folder folder;
  const Model model = model_of(small());
  const auto refuses = [&](const char* name, const char* expected) {
    expect_refused<ArgumentError>([&] { save_c_array(model, folder / name, {.matrices = DType::F32}); }, expected);
    EXPECT_FALSE(std::filesystem::exists(folder / name));
  };
  for (const char* const name : {"time.h", "string.h", "Time.H", "features.h"}) {
    refuses(name, "the name of a header that hides no standard one, such as model.hpp");
  }
  for (const char* const name : {"new", "model", "-"}) {
    refuses(name, "a name with an extension, which headers of C++ lack, such as model.hpp");
  }
}

TEST(CArray, RefusesAnotherMixer) {
  const Folder folder;
  const auto checkpoint = open_checkpoint(GOLDEN_FOLDER "/tiny-mamba2");
  expect_refused<ConfigError>([&] { save_c_array(checkpoint, folder / "a.hpp"); },
                              "a Mamba (S6), which minimamba/embedded.hpp runs");
}

}  // namespace c_array_test
