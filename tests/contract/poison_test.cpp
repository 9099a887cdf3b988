// Layers never follow a pointer and never wait: whole models run, score and train on a backend whose memory cannot be
// touched at the addresses it hands out, as that of another device could not, and which does nothing before something
// is downloaded; and they give the bits of the reference backend.
#if __has_include(<sys/mman.h>)
#include <filesystem>
#include <fstream>
#include <optional>

#include "minimamba/io.hpp"
#include "minimamba/nn/selection.hpp"
#include "minimamba/serving.hpp"
#include "minimamba/train/checkpoint.hpp"
#include "support/poison.hpp"
#include "support/support.hpp"

namespace poison_test {

using namespace minimamba;
using support::Device;
using support::PoisonBackend;
using support::PoisonTraining;
using support::random_tokens;

static_assert(HasTopK<PoisonBackend<float>> && InferenceBackend<PoisonBackend<float>> &&
              TrainingBackend<PoisonTraining<float>>);

template <class ScalarType, class WeightType>
struct Stored {
  using Scalar = ScalarType;
  using Weight = WeightType;
};
struct StoredNames {
  template <class S>
  static std::string GetName(int) {
    return std::string(Format<typename S::Scalar>::name) + "_" + std::string(Format<typename S::Weight>::name);
  }
};

/// A folder that is gone when the test ends.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "minimamba-poison-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  std::filesystem::path operator/(const char* name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

template <class S>
class Layers : public testing::Test {
 public:
  using Scalar = typename S::Scalar;
  using Plain = Mamba<Scalar, ReferenceBackend, typename S::Weight>;
  using Poisoned = Mamba<Scalar, PoisonBackend, typename S::Weight>;
  using Numbers = support::HostMatrix<Scalar>;

  /// A copy on the host, through the backend.
  static Numbers copy_of(View<const Scalar> view) {
    const bool on_device = Device::get().holds(view.data());
    Numbers copy(view.rows(), view.cols());
    for (std::size_t i = 0; i < view.rows(); ++i) {
      const auto row = copy.view().row(i);
      if (on_device) {
        PoisonBackend<Scalar>().download(view.rows_from(i, 1).data(), row);
      } else {
        ReferenceBackend<Scalar>().download(view.rows_from(i, 1).data(), row);
      }
    }
    return copy;
  }

  template <class Cache>
  static std::vector<Numbers> states(const Cache& cache) {
    std::vector<Numbers> all;
    for (std::size_t layer = 0; layer < cache.layout().layers(); ++layer) {
      for (std::size_t row = 0; row < cache.batch(); ++row) {
        all.push_back(copy_of(cache.conv(layer, row)));
        all.push_back(copy_of(cache.ssm(layer, row)));
      }
    }
    return all;
  }

  template <class Model>
  static std::vector<Numbers> parameters(const Model& model) {
    std::vector<Numbers> all;
    for_each_parameter(
        [&](std::string_view, const auto& parameter) {
          all.emplace_back(parameter.rows(), parameter.cols());
          parameter.download(model.backend(), 0, all.back().view());
        },
        model);
    return all;
  }

  static void expect_identical(const std::vector<Numbers>& a, const std::vector<Numbers>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(identical(a[i], b[i])) << i;
  }

  static MambaConfig config() {
    MambaConfig c = support::small_config();
    c.bias = true;
    c.tie_embeddings = false;
    return c;
  }

  /// What a model answers, and what is left in its cache, by every way of reading that there is.
  template <class Model>
  static std::vector<Numbers> read(const Model& model) {
    constexpr std::size_t batch = 3, length = 100;  // together more than one chunk
    std::vector<Numbers> all;
    const auto keep = [&](View<const Scalar> logits) { all.push_back(copy_of(logits)); };
    const auto keep_states = [&](const auto& cache) {
      for (Numbers& state : states(cache)) all.push_back(std::move(state));
    };
    auto one = model.make_cache();
    keep(model.forward(random_tokens(300, 50), one));
    for (const std::int32_t token : {4, 9, 30}) keep(model.forward(std::vector<std::int32_t>{token}, one));
    keep(model.forward({}, one));
    keep(model.forward_last(random_tokens(20, 50), one));
    keep_states(one);

    auto many = model.make_cache(batch);
    keep(model.forward(random_tokens(batch * length, 50), many));
    keep(model.forward_last(random_tokens(batch * length, 50, 2), many));
    const auto clone = many.clone();
    auto gathered = clone.gather({2, 0, 0, 1});
    keep(model.forward(random_tokens(4, 50), gathered));
    gathered.reorder(std::vector<std::size_t>{1, 2, 0, 2});
    const auto few = random_tokens(5, 50, 3), more = random_tokens(270, 50, 4);
    keep(model.forward(std::vector<minimamba::Run>{{3, few}, {0, more}, {1, {}}}, gathered));
    auto work = typename Model::WorkspaceType();
    keep(model.forward_last(std::vector<minimamba::Run>{{3, more}, {2, few}}, gathered, work));
    keep_states(gathered);
    many.reset();
    keep_states(many);
    keep(model.forward(random_tokens(batch, 50), many));
    keep_states(clone);
    return all;
  }

  template <class Model>
  static std::vector<std::int32_t> continuation(const Model& model, const GenerateOptions& options) {
    auto cache = model.make_cache();
    std::vector<std::int32_t> tokens;
    for (const auto token : generate(model, cache, random_tokens(10, 50), options)) tokens.push_back(token);
    return tokens;
  }
};
using StoredKinds = testing::Types<Stored<float, float>, Stored<double, bf16>>;
TYPED_TEST_SUITE(Layers, StoredKinds, StoredNames);

TYPED_TEST(Layers, InitialiseWithoutTouchingATensor) {
  const typename TestFixture::Plain plain(this->config());
  const typename TestFixture::Poisoned poisoned(this->config());
  this->expect_identical(this->parameters(plain), this->parameters(poisoned));
}

TYPED_TEST(Layers, RunWithoutTouchingATensor) {
  for (const std::int64_t d_conv : {1, 4}) {
    auto config = this->config();
    config.d_conv = d_conv;
    config.conv_bias = config.bias = d_conv == 4;
    config.tie_embeddings = config.dt_b_c_rms = d_conv == 1;
    const auto plain = support::trained_looking_model<typename TestFixture::Plain>(config);
    const auto poisoned = support::trained_looking_model<typename TestFixture::Poisoned>(config);
    this->expect_identical(this->read(plain), this->read(poisoned));
  }
}

TYPED_TEST(Layers, SelectWithoutTouchingATensor) {
  const auto plain = support::trained_looking_model<typename TestFixture::Plain>(this->config());
  const auto poisoned = support::trained_looking_model<typename TestFixture::Poisoned>(this->config());
  const auto tokens = support::random_tokens(40, this->config().vocab_size);
  std::vector<LayerSelection> expected;
  for_each_selection(plain, tokens, [&](std::size_t, const auto& selection) { expected.push_back(selection); });
  for_each_selection(
      poisoned, tokens,
      [&](std::size_t layer, const auto& selection) {
        EXPECT_EQ(selection.dt, expected.at(layer).dt);
        EXPECT_EQ(selection.a, expected.at(layer).a);
      },
      7);
}

TYPED_TEST(Layers, GenerateWithoutTouchingATensor) {
  const auto plain = support::trained_looking_model<typename TestFixture::Plain>(this->config());
  const auto poisoned = support::trained_looking_model<typename TestFixture::Poisoned>(this->config());
  for (const auto& [temperature, top_k] : {std::pair(0.0, 0), std::pair(1.0, 0), std::pair(1.0, 10)}) {
    const GenerateOptions options{.max_new_tokens = 20, .temperature = temperature, .top_k = top_k, .top_p = 0.95};
    EXPECT_EQ(this->continuation(plain, options), this->continuation(poisoned, options));
  }
}

TYPED_TEST(Layers, AreCopiedWithoutTouchingATensor) {
  const auto plain = support::trained_looking_model<typename TestFixture::Plain>(this->config());
  auto poisoned = TestFixture::Poisoned::shapes_only(this->config());
  allocate_parameters(poisoned, poisoned.backend());
  copy_parameters(plain, plain.backend(), poisoned, poisoned.backend());
  poisoned.refresh();
  auto moved_from = std::make_optional(poisoned.clone());
  const auto moved = std::move(*moved_from);
  moved_from.reset();
  typename TestFixture::Plain back(this->config());
  copy_parameters(moved, moved.backend(), back, back.backend());
  back.refresh();
  this->expect_identical(this->parameters(plain), this->parameters(back));
  const auto expected = this->read(plain);
  this->expect_identical(expected, this->read(moved));
  this->expect_identical(expected, this->read(back));
}

TYPED_TEST(Layers, AreSavedAndLoadedWithoutTouchingATensor) {
  const Folder folder;
  const auto plain = support::trained_looking_model<typename TestFixture::Plain>(this->config());
  const auto poisoned = support::trained_looking_model<typename TestFixture::Poisoned>(this->config());
  save(plain, folder / "plain");
  save(poisoned, folder / "poisoned");
  for (const char* const file : {"model.safetensors", "config.json"}) {
    EXPECT_EQ(text_of(folder / "plain" / file), text_of(folder / "poisoned" / file)) << file;
  }
  const auto loaded = load<typename TestFixture::Poisoned>(folder / "poisoned");
  this->expect_identical(this->parameters(plain), this->parameters(loaded));
  this->expect_identical(this->read(plain), this->read(loaded));
}

TYPED_TEST(Layers, ScoreAndBatchWithoutTouchingATensor) {
  const auto plain = support::trained_looking_model<typename TestFixture::Plain>(this->config());
  const auto poisoned = support::trained_looking_model<typename TestFixture::Poisoned>(this->config());
  const auto tokens = random_tokens(60, 50);
  Scorer one(plain, 16);
  Scorer other(poisoned, 16);
  one.read(tokens);
  other.read(tokens);
  EXPECT_EQ(one.score().nats, other.score().nats);
  const std::vector<std::vector<std::int32_t>> prompts{random_tokens(3, 50), random_tokens(40, 50),
                                                       random_tokens(1, 50)};
  auto a = plain.make_cache(3);
  auto b = poisoned.make_cache(3);
  const auto expected = generate_batch(plain, a, prompts, {.max_new_tokens = 6, .log_probabilities = true});
  const auto found = generate_batch(poisoned, b, prompts, {.max_new_tokens = 6, .log_probabilities = true});
  for (std::size_t row = 0; row < 3; ++row) {
    EXPECT_EQ(expected[row].tokens, found[row].tokens);
    EXPECT_EQ(expected[row].log_probabilities, found[row].log_probabilities);
  }
  this->expect_identical(this->states(a), this->states(b));
}

TYPED_TEST(Layers, ServeAndSearchWithoutTouchingATensor) {
  const auto plain = support::trained_looking_model<typename TestFixture::Plain>(this->config());
  const auto poisoned = support::trained_looking_model<typename TestFixture::Poisoned>(this->config());
  const auto served = [](const auto& model) {
    std::vector<std::vector<std::int32_t>> tokens(6);
    std::vector<double> probabilities;
    Scheduler scheduler(
        model, {.slots = 3, .prompt_tokens = 9, .prefix_cache_bytes = std::size_t{1} << 24, .prefix_interval = 8});
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      scheduler.submit({.prompt = random_tokens(20 + i % 2, 50),
                        .options = {.max_new_tokens = 5, .temperature = i % 2 == 0 ? 0.0 : 1.0, .seed = i},
                        .top_log_probabilities = static_cast<std::int64_t>(i % 3),
                        .score_prompt = i == 4,
                        .on_end =
                            [&, i](auto& result) {
                              tokens[i] = result.tokens;
                              for (const double x : result.log_probabilities) probabilities.push_back(x);
                              for (const double x : result.prompt_log_probabilities) probabilities.push_back(x);
                            },
                        .keep_state = true});
    }
    scheduler.run();
    const auto start = model.make_cache();
    const auto prompt = random_tokens(7, 50);
    for (const auto& one : generate_several(model, start, prompt, 2, {.max_new_tokens = 5, .temperature = 1})) {
      tokens.push_back(one.tokens);
    }
    for (const auto& one : beam_search(model, start, prompt, {.beams = 3, .best = 2, .max_new_tokens = 5})) {
      tokens.push_back(one.tokens);
      probabilities.push_back(one.score);
    }
    auto cache = model.make_cache();
    const auto small = model.clone();
    Speculator speculator(model, DraftModel(small));
    tokens.push_back(speculator.generate(cache, prompt, {.max_new_tokens = 9, .temperature = 1}).tokens);
    return std::pair(tokens, probabilities);
  };
  EXPECT_EQ(served(plain), served(poisoned));
}

TYPED_TEST(Layers, KeepTheirStateInFilesWithoutTouchingATensor) {
  const Folder folder;
  const auto plain = support::trained_looking_model<typename TestFixture::Plain>(this->config());
  const auto poisoned = support::trained_looking_model<typename TestFixture::Poisoned>(this->config());
  auto a = plain.make_cache(2);
  auto b = poisoned.make_cache(2);
  plain.forward_last(random_tokens(30, 50), a);
  poisoned.forward_last(random_tokens(30, 50), b);
  save_state(plain, a, folder / "a");
  save_state(poisoned, b, folder / "b");
  EXPECT_EQ(text_of(folder / "a"), text_of(folder / "b"));
  const auto restored = load_state(folder / "a", poisoned);
  this->expect_identical(this->states(a), this->states(restored.cache));
}

TEST(PoisonTraining, TakesTheStepsOfTheReferenceAndWaitsOnceInEach) {
  using Plain = Mamba<float, ReferenceTraining>;
  using Poisoned = Mamba<float, PoisonTraining>;
  auto config = support::small_config();
  const auto tokens = random_tokens(300, config.vocab_size);
  for (const bool recompute : {false, true}) {
    config.dt_b_c_rms = recompute;
    const TrainerOptions options{.batch = 2,
                                 .length = 20,
                                 .accumulate = 2,
                                 .schedule = {.steps = 10},
                                 .tape = {.chunk = 6, .recompute = recompute, .dropout = 0.1},
                                 .average = recompute ? 0.9 : 0};
    Trainer plain(Plain(config), tokens, options);
    Trainer poisoned(Poisoned(config), tokens, options);
    int hooked = 0;
    poisoned.on_gradients([&](Gradients<Poisoned>&) { ++hooked; });
    for (int i = 0; i < 4; ++i) {
      const std::size_t waits = Device::get().waits();
      const StepRecord expected = plain.step(), found = poisoned.step();
      EXPECT_EQ(Device::get().waits() - waits, 1U);
      EXPECT_EQ(expected.loss, found.loss);
      EXPECT_EQ(expected.gradient_norm, found.gradient_norm);
    }
    EXPECT_EQ(hooked, 4);
    EXPECT_GT(Device::get().waiting(), 0U) << "the last optimiser step waits for nobody";
    EXPECT_EQ(plain.validate(2), poisoned.validate(2));
    plain.require_finite();
    poisoned.require_finite();
    const Folder folder;
    save_training(poisoned, folder / "training");
    Trainer again(Poisoned(config), tokens, options);
    resume_training(again, folder / "training");
    EXPECT_EQ(plain.step().loss, again.step().loss);
  }
}

TEST(PoisonTraining, ComputesTheGradientsOfABackboneAsTheReferenceDoes) {
  const MambaConfig config{.d_model = 20, .n_layer = 2, .d_state = 5};
  const auto backward = [&]<class Model>(const Model& model) {
    using Buffer = typename Model::BackendType::template Buffer<float>;
    const auto& backend = model.backend();
    std::vector<float> host(14 * 20), back(14 * 20);
    Random random(3);
    for (float& x : host) x = static_cast<float>(random.normal());
    Buffer inputs = backend.template allocate<float>(host.size()),
           d_inputs = backend.template allocate<float>(host.size());
    backend.upload(host, inputs.data());
    const View<float> x(inputs.data(), 14, 20);
    auto cache = model.make_cache(2), d_state = model.make_cache(2);
    cache.keep_every(3);
    model.forward_last(x, cache);  // what it keeps is taken back
    cache.rollback(1, 3);
    cache.assign(0, cache, 1);
    Tape tape(model, {.chunk = 4});
    auto gradients = zeros_like(model);
    const auto outputs = tape.forward(model, x, cache);
    tape.backward(model, outputs, gradients, {.d_state = &d_state, .d_inputs = View<float>(d_inputs.data(), 14, 20)});
    AdamW<Model> optimizer(model);
    Model trained = model.clone();
    const double norm = optimizer.step(trained, gradients, 1e-2);
    backend.download(d_inputs.data(), back);
    back.push_back(static_cast<float>(norm));
    std::vector<float> weight(20);
    trained.norm_f.weight.download(backend, 0, View<float>(weight.data(), 1, 20));
    back.insert(back.end(), weight.begin(), weight.end());
    return back;
  };
  const auto expected = backward(MambaModel<float, ReferenceTraining>(config));
  EXPECT_EQ(expected, backward(MambaModel<float, PoisonTraining>(config)));
  EXPECT_GT(expected[280], 0);
}

TEST(PoisonBackend, FaultsWhereItsMemoryIsTouched) {
  auto buffer = PoisonBackend<float>().allocate<float>(8);
  EXPECT_DEATH(std::printf("%f", static_cast<double>(*buffer.data())), "");
  std::vector<float> host(8);
  EXPECT_THROW(PoisonBackend<float>().upload(host, host.data()), std::logic_error);
  EXPECT_THROW(PoisonBackend<float>().upload({buffer.data(), 8}, buffer.data()), std::logic_error);
}

}  // namespace poison_test
#endif
