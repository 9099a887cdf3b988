// Numbers that do not fit a narrow type: refused before anything is written, or clamped and counted.
#include "support/files.hpp"

namespace saturate_test {

using namespace minimamba;
namespace fs = std::filesystem;
using support::Folder;
using support::Model;

TEST(RangeCheck, RefusesWhatDoesNotFitOrClampsIt) {
  const Folder folder;
  Model model = support::trained_looking_model<Model>(support::tiny_config());
  const std::string name = "layers.1.mixer.out_proj.weight";
  for_each_parameter(
      [&](std::string_view parameter, auto& tensor) {
        if (parameter != name) return;
        std::vector<float> row(tensor.cols());
        row[1] = 1e5F;
        row[2] = -1e9F;
        tensor.upload(model.backend(), 0, View<const float>(row.data(), 1, row.size()));
      },
      model);
  save(model, folder.path());
  const auto expect_refusal = [&](auto&& body, const std::vector<std::string>& words) {
    const auto before = support::contents(folder.path());
    try {
      body();
      ADD_FAILURE() << "accepted";
    } catch (const CheckpointError& error) {
      support::expect_words(error.what(), words);
    }
    EXPECT_EQ(support::contents(folder.path()), before);
  };
  const Checkpoint checkpoint = open_checkpoint(folder.path());
  using Half = Mamba<float, ReferenceBackend, f16>;
  using Four = Mamba<float, ReferenceBackend, q4>;
  const fs::path out = folder / "out", gguf = folder / "out.gguf";
  expect_refusal([&] { save(checkpoint, out, {.matrices = DType::F16}); },
                 {"model.safetensors", name, "found 100000", "F16"});
  expect_refusal([&] { save(model, out, {.matrices = DType::F16}); }, {name, "found 100000", "F16"});
  expect_refusal([&] { save_gguf(checkpoint, gguf, {.matrices = DType::F16}); }, {name, "found 100000"});
  expect_refusal([&] { load<Half>(folder.path()); }, {"model.safetensors", name, "found 100000", "F16"});
  expect_refusal([&] { load<Four>(folder.path()); }, {"model.safetensors", name, "found -1e+09", "Q4_0"});
  EXPECT_NO_THROW(save(checkpoint, folder / "bf16", {.matrices = DType::BF16}));
  std::vector<std::string> notes;
  const auto on_note = [&](const std::string& note) { notes.push_back(note); };
  save(checkpoint, out, {.matrices = DType::F16, .saturate = true, .on_note = on_note});
  save_gguf(checkpoint, gguf, {.matrices = DType::F16, .saturate = true, .on_note = on_note});
  const Half half = load<Half>(folder.path(), {.on_note = on_note, .saturate = true});
  load<Four>(folder.path(), {.on_note = on_note, .saturate = true});
  ASSERT_EQ(notes.size(), 4U);
  for (std::size_t i = 0; i < 3; ++i) support::expect_words(notes[i], {"2 values", "F16", "clamped"});
  support::expect_words(notes[3], {"1 value ", "Q4_0", "clamped"});
  for (const fs::path& path : {out, gguf}) {
    const Checkpoint clamped = open_checkpoint(path);
    std::vector<float> row(16);
    clamped.read(name, 0, std::span(row));
    EXPECT_EQ(row[1], 65504);
    EXPECT_EQ(row[2], -65504);
  }
}

/// Sets a number of layers.1.mixer.out_proj.weight.
template <class M>
void set_number(M& model, double number) {
  using Scalar = typename M::ScalarType;
  auto& weight = model.layers[1].mixer.out_proj.weight;
  std::vector<Scalar> row(weight.cols());
  row[1] = static_cast<Scalar>(number);
  weight.upload(model.backend(), 0, View<const Scalar>(row.data(), 1, row.size()));
}
void expect_does_not_fit(const std::function<void()>& body, const std::vector<std::string>& words) {
  try {
    body();
    ADD_FAILURE() << "accepted";
  } catch (const CheckpointError& error) {
    support::expect_words(error.what(), words);
  }
}

TEST(RangeCheck, ChecksTheTypesThatAModelStores) {
  const Folder folder;
  const fs::path gguf = folder / "model.gguf";
  Mamba<double, ReferenceBackend> wide =
      support::trained_looking_model<Mamba<double, ReferenceBackend>>(support::tiny_config());
  save_gguf(wide, gguf);
  set_number(wide, 1e300);
  expect_does_not_fit([&] { save_gguf(wide, gguf); }, {"out_proj.weight", "found 1e+300", "F32"});
  Mamba<float, ReferenceBackend, q8> blocks =
      support::trained_looking_model<Mamba<float, ReferenceBackend, q8>>(support::tiny_config());
  save_gguf(blocks, gguf);  // its rows are no whole blocks, so in F16
  set_number(blocks, 1e6);
  expect_does_not_fit([&] { save_gguf(blocks, gguf); }, {"out_proj.weight", "found ", "F16"});
  std::vector<std::string> notes;
  save_gguf(blocks, gguf, {.saturate = true, .on_note = [&](const std::string& note) { notes.push_back(note); }});
  ASSERT_EQ(notes.size(), 1U);
  support::expect_words(notes.front(), {"1 value ", "F16", "clamped"});
}

TEST(RangeCheck, ChecksAInGguf) {
  const Folder folder;
  Model model = support::trained_looking_model<Model>(support::tiny_config());
  auto& a_log = model.layers[0].mixer.A_log;
  std::vector<float> row(a_log.cols(), 0.5F);
  row[2] = 100;  // exp(100) is no float
  a_log.upload(model.backend(), 0, View<const float>(row.data(), 1, row.size()));
  save(model, folder.path());
  const fs::path gguf = folder / "model.gguf";
  expect_does_not_fit([&] { save_gguf(open_checkpoint(folder.path()), gguf); },
                      {"layers.0.mixer.A_log", "found -2.68", "F32"});
  EXPECT_FALSE(fs::exists(gguf));
  save_gguf(open_checkpoint(folder.path()), gguf, {.saturate = true});
  std::vector<float> found(row.size());
  open_checkpoint(gguf).read("layers.0.mixer.A_log", 0, std::span(found));
  EXPECT_NEAR(found[2], std::log(std::numeric_limits<float>::max()), 1e-5F);
}

TEST(RangeCheck, FindsValuesThatAFloatWouldHide) {
  using Wide = Mamba<double, ReferenceBackend>;
  const Folder folder;
  Wide model = support::trained_looking_model<Wide>(support::tiny_config());
  auto& weight = model.layers[1].mixer.out_proj.weight;
  std::vector<double> row(weight.cols());
  row[1] = 1e300;
  weight.upload(model.backend(), 0, View<const double>(row.data(), 1, row.size()));
  save(model, folder.path());
  EXPECT_NO_THROW(load<Wide>(folder.path()));
  try {
    load<Model>(folder.path());
    ADD_FAILURE() << "accepted";
  } catch (const CheckpointError& error) {
    support::expect_words(error.what(), {"layers.1.mixer.out_proj.weight", "found 1e+300", "F32"});
  }
  const Model clamped = load<Model>(folder.path(), {.saturate = true});
  std::vector<float> found(weight.cols());
  clamped.layers[1].mixer.out_proj.weight.download(clamped.backend(), 0, View<float>(found.data(), 1, found.size()));
  EXPECT_EQ(found[1], std::numeric_limits<float>::max());
}

}  // namespace saturate_test
