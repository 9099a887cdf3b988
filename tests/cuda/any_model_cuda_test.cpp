// AnyModel on a card, as programs choose it by name. The driver is that of support/fake_cuda.cpp.
#include <functional>
#include <string>
#include <vector>

#include "minimamba/io/any_model.hpp"
#include "support/fake_driver.hpp"

namespace any_model_cuda_test {

using namespace minimamba;
using support::expect_problem;
using support::expect_success;
using support::fake_driver;
using support::FakeCuda;
using support::Folder;

void save_model(const Folder& folder, std::int64_t d_state = 16) {
  save(Mamba<float>({.d_model = 8, .n_layer = 1, .vocab_size = 16, .d_state = d_state}), folder.path());
}
/// The backend of a model, and what it said.
std::string chosen(const Folder& folder, const std::string& wanted) {
  std::string notes;
  const auto model = AnyModel::load(
      folder.path(), {.backend = wanted, .on_note = [&](const std::string& note) { notes += ", " + note; }});
  return model.backend().name() + (" on " + model.device().name) + notes;
}

TEST(AnyModelOnACard, IsLikeOneOnTheProcessor) {
  const Folder folder;
  save_model(folder);
  expect_success([&] {
    fake_driver();
    const AnyModel model = AnyModel::load(folder.path(), {.weights = "q8", .backend = "cuda"});
    REQUIRE(model.device().total_memory == std::size_t{1} << 30);
    auto cache = model.make_cache(2);
    const View<const float> logits = model.forward({1, 2, 3, 4}, cache);
    REQUIRE(logits.rows() == 4 && logits.row(3).size() == 16);
    REQUIRE(cache.position(1) == 2 && cache.memory_bytes() > cache.state_bytes());
    const auto copy = cache.clone();
    REQUIRE(copy.position(0) == 2);
    auto one = model.make_cache();
    const auto result =
        generate(model, one, std::vector<std::int32_t>{1}, {.max_new_tokens = 3, .ignore_eos = true}).collect();
    REQUIRE(result.tokens.size() == 3);
  });
}

TEST(AnyModelOnACard, MayBeAMamba2) {
  const Folder folder;
  save(Mamba<float, NativeBackend, float, SSD>({.d_model = 32, .n_layer = 1, .vocab_size = 16}), folder.path());
  expect_success([&] {
    fake_driver();
    const AnyModel model = AnyModel::load(folder.path(), {.weights = "q4", .backend = "cuda"});
    auto cache = model.make_cache();
    REQUIRE(model.forward({1, 2}, cache).rows() == 2);
    REQUIRE(chosen(folder, "auto").starts_with("cuda on Fake H100"));
  });
}

TEST(AnyModelOnACard, IsChosenByAutoWhereItFits) {
  const Folder folder, wide;
  save_model(folder);
  save_model(wide, 1025);
  const auto expect_choice = [&](const char* words, const std::function<std::string(FakeCuda&)>& choose) {
    EXPECT_EXIT(support::end_with([&] { std::fprintf(stderr, "%s\n", choose(fake_driver()).c_str()); }),
                testing::ExitedWithCode(0), words);
  };
  expect_choice("cuda on Fake H100, compiling layers_0 for Fake H100 .sm_90a., compiling",
                [&](FakeCuda&) { return chosen(folder, "auto"); });
  expect_choice("native on CPU, .*computing on the processor: Fake H100: too little memory", [&](FakeCuda& fake) {
    fake.memory = 1000;
    return chosen(folder, "auto");
  });
  expect_choice("native on CPU, computing on the processor: Fake H100: expected a card of compute",
                [&](FakeCuda& fake) {
                  fake.capability = 75;
                  return chosen(folder, "auto");
                });
  expect_choice("native on CPU, .*computing on the processor: MambaConfig.d_state: expected at most 1024",
                [&](FakeCuda&) { return chosen(wide, "auto"); });
  expect_choice("native on CPU, computing on the processor: CUDA: the driver does not start: a fake error",
                [&](FakeCuda& fake) {
                  fake.init_error = 999;
                  return chosen(folder, "auto");
                });
  expect_choice("native on CPU, computing on the processor: CUDA: the driver sees no card", [&](FakeCuda& fake) {
    fake.init_error = 100;  // as in a container that was not given the card
    return chosen(folder, "auto");
  });
  expect_choice("native on CPU, computing on the processor: NVRTC: there is no NVRTC of CUDA 13 or 12", [&](FakeCuda&) {
    ::setenv("MINIMAMBA_NVRTC", "/nowhere/libnvrtc.so", 1);
    return chosen(folder, "auto");
  });
  if (!support::has_driver()) {  // nothing is wrong with a machine without one
    EXPECT_EXIT(support::end_with([&] { std::fprintf(stderr, "%s\n", chosen(folder, "auto").c_str()); }),
                testing::ExitedWithCode(0), "^native on CPU\n");
  }
  expect_problem(CudaProblem::no_device, "the driver sees no card", [&] {
    fake_driver().init_error = 100;
    chosen(folder, "cuda");
  });
}

}  // namespace any_model_cuda_test
