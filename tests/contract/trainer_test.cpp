// Trainings: they learn, go on from a checkpoint to the same bits, and refuse what cannot be.
#include "support/files.hpp"
#include "support/training.hpp"

#include "minimamba/train.hpp"
#include "minimamba/train/checkpoint.hpp"

namespace trainer_test {

using namespace minimamba;
using support::expect_words;
using support::Folder;

MambaConfig config() { return {.d_model = 24, .n_layer = 2, .vocab_size = 20, .d_state = 4}; }

TrainerOptions options() {
  return {.batch = 3,
          .length = 16,
          .accumulate = 2,
          .seed = 5,
          .schedule = {.max_lr = 1e-2, .min_lr = 1e-3, .warmup_steps = 3, .steps = 12},
          .tape = {.dropout = 0.1}};
}

/// Counting over and over: what comes next can be learned.
std::vector<std::int32_t> tokens() {
  std::vector<std::int32_t> counted(600);
  for (std::size_t i = 0; i < counted.size(); ++i) counted[i] = static_cast<std::int32_t>(i % 20);
  return counted;
}

template <class K>
class Trainings : public support::KernelTest<K> {};
#ifdef MINIMAMBA_TEST_CUDA  // the same tests, on a card
using Kinds = testing::Types<support::Kind<float, support::TestedCudaTraining>>;
#else
using Kinds = testing::Types<support::Kind<float, ReferenceTraining>, support::Kind<float, NativeTraining>>;
#endif
TYPED_TEST_SUITE(Trainings, Kinds, support::KindNames);

TYPED_TEST(Trainings, Learn) {
  using TestModel = typename TypeParam::Model;
  TrainerOptions learning = options();
  learning.schedule.steps = 60;
  learning.tape.dropout = 0;
  Trainer<TestModel> trainer(TestModel(config()), tokens(), learning);
  const double before = trainer.validate(100);
  EXPECT_NEAR(before, std::log(20), 0.3);
  while (!trainer.ended()) trainer.step();
  EXPECT_EQ(trainer.history().size(), 60U);
  EXPECT_LT(trainer.history().back().loss, 0.5 * before);
  EXPECT_LT(trainer.validate(100), 0.5 * before);
  EXPECT_EQ(trainer.history().back().validation_loss, trainer.validate(100));
}

TYPED_TEST(Trainings, DrawMoreWindowsThanThereAreTokens) {
  using TestModel = typename TypeParam::Model;
  TrainerOptions wide = options();
  wide.batch = 50;
  wide.length = 4;
  wide.validation_fraction = 0;
  const auto text = tokens();
  Trainer<TestModel> trainer(TestModel(config()), {text.begin(), text.begin() + 20}, wide);
  EXPECT_TRUE(std::isfinite(trainer.step().loss));
}

TYPED_TEST(Trainings, ContinueFromACheckpointWithTheSameBits) {
  using TestModel = typename TypeParam::Model;
  const Folder folder;
  const auto file = folder / "training.safetensors";
  Trainer<TestModel> whole(TestModel(config()), tokens(), options());
  for (int i = 0; i < 12; ++i) {
    whole.step();
    if (i == 4) whole.validate(2);
    if (i == 4) save_training(whole, file);
  }
  // From another model, and after a step of its own: all that matters comes from the file.
  Trainer<TestModel> resumed(TestModel(config(), typename TypeParam::Backend(), 9), tokens(), options());
  resumed.step();
  resume_training(resumed, file);
  EXPECT_EQ(resumed.steps(), 5);
  while (!resumed.ended()) resumed.step();
  support::expect_identical(support::parameters_of(whole.model()), support::parameters_of(resumed.model()));
  support::expect_identical(support::parameters_of(whole.optimizer().variance()),
                            support::parameters_of(resumed.optimizer().variance()));
  EXPECT_EQ(support::bits_of(whole.history()), support::bits_of(resumed.history()));
}

TYPED_TEST(Trainings, AverageTheWeightsOverTheSteps) {
  using TestModel = typename TypeParam::Model;
  TrainerOptions averaging = options();
  averaging.average = 0.7;
  Trainer<TestModel> plain(TestModel(config()), tokens(), options()), trainer(TestModel(config()), tokens(), averaging);
  EXPECT_EQ(&plain.averaged(), &plain.model());
  std::map<std::string, std::vector<double>> expected;
  for (const auto& [name, values] : support::parameters_of(trainer.model())) {
    expected[name].assign(values.values.begin(), values.values.end());
  }
  for (int t = 1; t <= 12; ++t) {
    plain.step();
    trainer.step();
    const double rate = t < 20 ? 9 / (t + 10.0) : 0.3;
    for (const auto& [name, values] : support::parameters_of(trainer.model())) {
      for (std::size_t i = 0; i < values.values.size(); ++i) {
        expected[name][i] += rate * (static_cast<double>(values.values[i]) - expected[name][i]);
      }
    }
  }
  // The training is the same.
  support::expect_identical(support::parameters_of(plain.model()), support::parameters_of(trainer.model()));
  for (const auto& [name, values] : support::parameters_of(trainer.averaged())) {
    double largest = 0;
    for (std::size_t i = 0; i < values.values.size(); ++i) {
      largest = std::max(largest, std::abs(expected[name][i] - static_cast<double>(values.values[i])));
    }
    EXPECT_LE(largest, 1e-5) << name;
  }
  // What is derived from the weights is that of the average, and validation is by the average.
  Trainer<TestModel> copy(trainer.averaged().clone(), tokens(), options());
  copy.mutable_model().refresh();
  EXPECT_EQ(trainer.validate(100), copy.validate(100));
  EXPECT_NE(trainer.validate(100), plain.validate(100));
}

TYPED_TEST(Trainings, ContinueTheAverageFromACheckpoint) {
  using TestModel = typename TypeParam::Model;
  const Folder folder;
  TrainerOptions averaging = options();
  averaging.average = 0.7;
  Trainer<TestModel> whole(TestModel(config()), tokens(), averaging);
  for (int i = 0; i < 12; ++i) {
    whole.step();
    if (i == 4) save_training(whole, folder / "t");
  }
  Trainer<TestModel> resumed(TestModel(config(), typename TypeParam::Backend(), 9), tokens(), averaging);
  resume_training(resumed, folder / "t");
  while (!resumed.ended()) resumed.step();
  support::expect_identical(support::parameters_of(whole.averaged()), support::parameters_of(resumed.averaged()));
  EXPECT_EQ(whole.validate(100), resumed.validate(100));
  Trainer<TestModel> plain(TestModel(config()), tokens(), options());
  expect_error<CheckpointError>([&] { resume_training(plain, folder / "t"); }, {"setting average", "lacks"});
  averaging.average = 0.8;
  Trainer<TestModel> other(TestModel(config()), tokens(), averaging);
  expect_error<CheckpointError>([&] { resume_training(other, folder / "t"); }, {"average 0.8", "found 0.7"});
}

TYPED_TEST(Trainings, KeepTheOldCheckpointWhenTheDiskIsFull) {
  using TestModel = typename TypeParam::Model;
  const Folder folder;
  const auto file = folder / "training.safetensors";
  Trainer<TestModel> trainer(TestModel(config()), tokens(), options());
  trainer.step();
  save_training(trainer, file);
  const auto before = support::contents(folder.path());
  trainer.step();
  {
    const support::FullDisk full(10'000);
    EXPECT_THROW(save_training(trainer, file), FileError);
  }
  EXPECT_EQ(support::contents(folder.path()), before);
}

using Native = Mamba<float, NativeTraining>;
using NativeTrainer = Trainer<Native>;

template <class E, class Body>
void expect_error(Body&& body, const std::vector<std::string>& words) {
  try {
    body();
    ADD_FAILURE() << "was accepted";
  } catch (const E& error) {
    expect_words(error.what(), words);
  }
}

TEST(ATraining, GoesOnForMoreStepsThanWerePlannedWithANote) {
  const Folder folder;
  NativeTrainer trainer(Native(config()), tokens(), options());
  trainer.step();
  save_training(trainer, folder / "training");
  TrainerOptions changed = options();
  changed.schedule.steps = 20;
  NativeTrainer longer(Native(config()), tokens(), changed);
  std::vector<std::string> notes;
  resume_training(longer, folder / "training", [&](const std::string& note) { notes.push_back(note); });
  ASSERT_EQ(notes.size(), 1U);
  expect_words(notes[0], {"training: the training run was planned for 12 steps", "the schedule for 20"});
  EXPECT_EQ(longer.steps(), 1);
  changed.schedule.steps = 11;
  NativeTrainer shorter(Native(config()), tokens(), changed);
  expect_error<CheckpointError>([&] { resume_training(shorter, folder / "training"); }, {"steps 11", "found 12"});
}

TEST(RefusedTrainings, OfAnotherConfigurationAreNamedAndChangeNothing) {
  const Folder folder;
  const auto file = folder / "training.safetensors";
  NativeTrainer trainer(Native(config()), tokens(), options());
  trainer.step();
  save_training(trainer, file);
  const auto expect_refused = [&](const MambaConfig& model, const std::vector<std::int32_t>& text,
                                  const TrainerOptions& changed, const std::vector<std::string>& words) {
    NativeTrainer other(Native(model), text, changed);
    const auto before = support::parameters_of(other.model());
    expect_error<CheckpointError>([&] { resume_training(other, file); }, words);
    support::expect_identical(before, support::parameters_of(other.model()));
    EXPECT_EQ(other.steps(), 0);
  };
  MambaConfig wide = config();
  wide.d_model = 32;
  TrainerOptions longer = options(), seeded = options();
  longer.length = 17;
  seeded.seed = 6;
  auto text = tokens();
  text[7] = 3;
  expect_refused(wide, tokens(), options(), {"training.safetensors", "d_model 32", "found 24"});
  expect_refused(config(), tokens(), longer, {"length 17", "found 16"});
  expect_refused(config(), tokens(), seeded, {"seed 6", "found 5"});
  expect_refused(config(), text, options(), {"other data"});
  MambaConfig falcon = config();
  falcon.dt_b_c_rms = true;
  expect_refused(falcon, tokens(), options(), {"setting.mixer_rms_eps", "lacks"});

  std::string bytes = support::read_text(file);
  const std::string number = R"("dtype":"F64","shape":[1])", numbers = R"("dtype":"F32","shape":[2])";
  ASSERT_NE(bytes.find(number), bytes.npos);
  support::write_text(file, bytes.replace(bytes.find(number), number.size(), numbers));
  expect_error<CheckpointError>([&] { resume_training(trainer, file); }, {"setting.", "F64 [1]", "found F32 [2]"});

  support::write_text(file, "no checkpoint");
  EXPECT_THROW(resume_training(trainer, file), FormatError);
  save(trainer.model(), folder / "model");
  expect_error<CheckpointError>([&] { resume_training(trainer, folder / "model" / "model.safetensors"); },
                                {"setting.", "lacks"});
  EXPECT_THROW(resume_training(trainer, folder / "nothing"), FileError);
}

TEST(RefusedTrainings, OfOtherKernelsAreNamed) {
  const Folder folder;
  const auto file = folder / "training.safetensors";
  const auto with = [](InstructionSet set) {
    return Native(config(), NativeTraining<float>({.threads = 1, .instruction_set = set}));
  };
  NativeTrainer trainer(with(InstructionSet::portable), tokens(), options());
  save_training(trainer, file);
  NativeTrainer again(with(InstructionSet::portable), tokens(), options());
  resume_training(again, file);
  using Reference = Mamba<float, ReferenceTraining>;
  Trainer<Reference> reference(Reference(config()), tokens(), options());
  expect_error<CheckpointError>([&] { resume_training(reference, file); },
                                {"training.safetensors", "backend reference", "found native portable"});
  NativeTrainer best(with(InstructionSet::best), tokens(), options());
  const InstructionSet set = best.model().backend().instruction_set();
  if (set == InstructionSet::portable) return;
  expect_error<CheckpointError>([&] { resume_training(best, file); }, {"backend native ", "found native portable"});
}

TEST(RefusedTrainings, OfAnotherChunkAreNamed) {
  const Folder folder;
  const auto file = folder / "training.safetensors";
  const auto with = [](std::int64_t chunk) {
    TrainerOptions changed = options();
    changed.tape.chunk = chunk;
    return changed;
  };
  NativeTrainer trainer(Native(config()), tokens(), options());
  trainer.step();
  save_training(trainer, file);
  NativeTrainer other(Native(config()), tokens(), with(5));
  expect_error<CheckpointError>([&] { resume_training(other, file); }, {"chunk 5", "found 16"});
  for (const std::int64_t chunk : {16, 1000}) {  // any chunk that holds the 16 tokens of a window is the same
    NativeTrainer same(Native(config()), tokens(), with(chunk));
    resume_training(same, file);
    EXPECT_EQ(same.steps(), 1);
  }
  std::string bytes = support::read_text(file);
  const std::string name = "setting.scan_chunk", another = "another.scan_chunk";
  ASSERT_NE(bytes.find(name), bytes.npos);
  support::write_text(file, bytes.replace(bytes.find(name), name.size(), another));
  resume_training(other, file);  // of a file from before the setting, which does not tell
  EXPECT_EQ(other.steps(), 1);
}

TEST(RefusedTrainings, OfAModelThatNormalisesDtBAndCAreNamed) {
  const Folder folder;
  const auto file = folder / "training.safetensors";
  MambaConfig falcon = config();
  falcon.dt_b_c_rms = true;
  NativeTrainer trainer(Native(falcon), tokens(), options()), plain(Native(config()), tokens(), options());
  save_training(trainer, file);
  resume_training(trainer, file);
  expect_error<CheckpointError>([&] { resume_training(plain, file); }, {"setting mixer_rms_eps", "this model lacks"});

  save_training(plain, file);
  resume_training(plain, file);
  expect_error<CheckpointError>([&] { resume_training(trainer, file); }, {"setting.mixer_rms_eps", "lacks"});
}

TEST(RefusedTrainings, OfAnotherScalarAreNamed) {
  const Folder folder;
  using Double = Mamba<double, ReferenceTraining>;
  using Single = Mamba<float, ReferenceTraining>;
  Trainer<Double> trainer(Double(config()), tokens(), options());
  save_training(trainer, folder / "t");
  Trainer<Single> other(Single(config()), tokens(), options());
  expect_error<CheckpointError>([&] { resume_training(other, folder / "t"); }, {"expected F32 [", "found F64 ["});
}

TEST(RefusedTrainings, OfTooLittleTextOrOddOptions) {
  const auto expect_refused = [](std::vector<std::int32_t> text, const TrainerOptions& refused,
                                 const std::vector<std::string>& words) {
    expect_error<ArgumentError>([&] { NativeTrainer(Native(config()), std::move(text), refused); }, words);
  };
  expect_refused({}, options(), {"text", "more than 16 tokens", "found 0 of 0"});
  expect_refused({1}, options(), {"more than 16 tokens", "found 1 of 1"});
  expect_refused(std::vector<std::int32_t>(40), options(), {"to validate on", "found 4 of 40"});
  auto unknown = tokens();
  unknown.back() = 20;
  expect_refused(unknown, options(), {"tokens[599]", "token id from 0 to 19", "found 20"});
  const auto with = [](auto change) {
    TrainerOptions changed = options();
    change(changed);
    return changed;
  };
  expect_refused(tokens(), with([](auto& o) { o.batch = 0; }), {"batch"});
  expect_refused(tokens(), with([](auto& o) { o.length = 0; }), {"length"});
  expect_refused(tokens(), with([](auto& o) { o.accumulate = 0; }), {"accumulate"});
  expect_refused(tokens(), with([](auto& o) { o.seed = std::uint64_t{1} << 53; }), {"TrainerOptions.seed", "2^53"});
  expect_refused(tokens(), with([](auto& o) { o.batch = -1; }), {"TrainerOptions.batch", "at least 1", "found -1"});
  expect_refused(tokens(), with([](auto& o) { o.tape.chunk = -3; }), {"TapeOptions.chunk", "at least 1", "found -3"});
  expect_refused(tokens(), with([](auto& o) { o.validation_fraction = 1; }), {"validation_fraction"});
  const auto most = std::numeric_limits<std::int64_t>::max();
  expect_refused(tokens(), with([&](auto& o) { o.length = most; }), {"more than " + std::to_string(most)});
  expect_refused(tokens(), with([](auto& o) { o.schedule.steps = -1; }), {"steps"});
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::nan("");
  expect_refused(tokens(), with([&](auto& o) { o.schedule.max_lr = infinity; }), {"max_lr", "found inf"});
  expect_refused(tokens(), with([&](auto& o) { o.schedule.min_lr = nan; }), {"min_lr", "found nan"});
  expect_refused(tokens(), with([](auto& o) { o.tape.dropout = 1; }), {"dropout"});
  expect_refused(tokens(), with([](auto& o) { o.adamw.beta1 = 2; }), {"beta1"});
  expect_refused(tokens(), with([](auto& o) { o.average = 1; }), {"TrainerOptions.average", "below 1", "found 1"});
}

TEST(RefusedTrainings, ThatDivergeNameTheStepAndTheTensor) {
  NativeTrainer trainer(Native(config()), tokens(), options());
  trainer.step();
  trainer.mutable_model().layers[1].mixer.D.view()(0, 2) = std::numeric_limits<float>::infinity();
  expect_error<DivergedError>([&] { trainer.step(); }, {"step 2", "layers.1.mixer.D", "finite"});
  EXPECT_EQ(trainer.steps(), 1);
  expect_error<DivergedError>([&] { trainer.validate(1); }, {"validation after step 1", "layers.1.mixer.D", "finite"});
}

template <class TestTrainer>
void expect_large_numbers_taken(double number) {
  using TestModel = std::remove_cvref_t<decltype(std::declval<TestTrainer>().model())>;
  TestTrainer trainer(TestModel(config()), tokens(), options());
  auto& bias = trainer.mutable_model().layers[0].mixer.conv1d.bias;  // silu makes zero of it
  bias.view()(0, 2) = static_cast<typename TestModel::ScalarType>(number);
  EXPECT_NO_THROW(trainer.require_finite()) << number;
}

TEST(RefusedTrainings, AreNoneWhereNumbersAreLargeButFinite) {
  expect_large_numbers_taken<NativeTrainer>(-3e38);
  expect_large_numbers_taken<Trainer<Mamba<double, ReferenceTraining>>>(-1e200);
}

TEST(RefusedTrainings, ThatDivergeKeepTheLastGoodCheckpoint) {
  const Folder folder;
  const auto file = folder / "training.safetensors";
  TrainerOptions wild = options();
  wild.schedule = {.max_lr = 1e30, .min_lr = 1e30, .steps = 6};
  NativeTrainer trainer(Native(config()), tokens(), wild);
  save_training(trainer, file);
  const auto before = support::contents(folder.path());
  trainer.step();  // its own loss is that of the weights before it
  expect_error<DivergedError>([&] { save_training(trainer, file); }, {"after step 1", "the loss is "});
  EXPECT_EQ(support::contents(folder.path()), before);

  NativeTrainer spoiled(Native(config()), tokens(), options());
  spoiled.step();
  spoiled.mutable_model().norm_f.weight.view()(0, 2) = std::numeric_limits<float>::quiet_NaN();
  expect_error<DivergedError>([&] { save_training(spoiled, file); }, {"after step 1", "norm_f.weight"});
  EXPECT_EQ(support::contents(folder.path()), before);
}

}  // namespace trainer_test
