// Ranks that train together have the bits of one rank with as many micro-batches, however they divide these.
#include "minimamba/distributed/data_parallel.hpp"

#include <cstddef>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "minimamba/nn/ssd.hpp"
#include "minimamba/train/checkpoint.hpp"
#include "support/files.hpp"
#include "support/ranks.hpp"
#include "support/sanitizer.hpp"
#include "support/training.hpp"

namespace data_parallel_test {

using namespace minimamba;
using support::bits_of;
using support::expect_identical;
using support::Folder;
using support::Late;
using support::on_ranks;
using support::parameters_of;

template <class ModelType, class CommType = ThreadRanks>
struct Ranked {
  using Model = ModelType;
  using Comm = CommType;
};
template <class K>
class Together : public testing::Test {
 public:
  using Model = typename K::Model;
  using OfRanks = DataParallel<typename K::Comm>;

  static typename Model::Config config() {
    typename Model::Config config;
    config.d_model = 24;
    config.n_layer = 2;
    config.vocab_size = 20;
    config.d_state = 4;
    if constexpr (requires { config.head_dim; }) config.head_dim = 16;
    return config;
  }
  static TrainerOptions options(std::int64_t micro_batches) {
    return {.batch = 2,
            .length = 16,
            .accumulate = 2,
            .micro_batches = micro_batches,
            .seed = 5,
            .schedule = {.max_lr = 1e-2, .min_lr = 1e-3, .warmup_steps = 2, .steps = 6},
            .tape = {.dropout = 0.1}};
  }
  static std::vector<std::int32_t> tokens() {
    std::vector<std::int32_t> counted(600);
    for (std::size_t i = 0; i < counted.size(); ++i) counted[i] = static_cast<std::int32_t>(i * i % 19 + i % 2);
    return counted;
  }
  static Model model() { return Model(config(), typename Model::BackendType({.threads = 1}), 3); }

  struct Outcome {
    support::Parameters<Model> weights, mean;
    std::vector<std::uint64_t> history;
  };
  /// Only rank 0 has all moments at the end.
  static Outcome outcome(const Trainer<Model>& trainer, std::size_t rank = 0) {
    Outcome all{.weights = parameters_of(trainer.model()), .mean = {}, .history = bits_of(trainer.history())};
    if (rank == 0) all.mean = parameters_of(trainer.optimizer().mean());
    return all;
  }
  static Outcome alone(std::int64_t micro_batches) {
    Trainer<Model> trainer(model(), tokens(), options(micro_batches));
    while (!trainer.ended()) {
      trainer.step();
      if (trainer.steps() % 2 == 0) trainer.validate(3);
    }
    return outcome(trainer);
  }
  /// The weights and histories of all ranks, and the moments of rank 0.
  static void expect_bits(const Outcome& expected, std::int64_t micro_batches, int ranks, DataParallelOptions how) {
    on_ranks<typename K::Comm>(ranks, [&](std::size_t rank, const typename K::Comm& comm) {
      Trainer<Model> trainer(model(), tokens(), options(micro_batches));
      OfRanks together(comm, how);
      while (!trainer.ended()) {
        trainer.step(together);
        if (trainer.steps() % 2 == 0) trainer.validate(together, 3);
      }
      for (int i = 0; i < 2; ++i) together.on_first(trainer, [] {});  // as a program that saves twice does
      SCOPED_TRACE(std::to_string(micro_batches) + " micro-batches, rank " + std::to_string(rank) + " of " +
                   std::to_string(ranks));
      const Outcome found = outcome(trainer, rank);
      expect_identical(expected.weights, found.weights);
      EXPECT_EQ(expected.history, found.history);
      if (rank == 0) expect_identical(expected.mean, found.mean);
    });
  }
};
using Kinds = testing::Types<Ranked<Mamba<float, NativeTraining>>, Ranked<Mamba<float, NativeTraining, float, SSD>>,
                             Ranked<Mamba<float, NativeTraining>, Late>>;
TYPED_TEST_SUITE(Together, Kinds);

TYPED_TEST(Together, HaveTheBitsOfOneRank) {
  const bool few = support::under_valgrind();  // which runs one thread at a time
  for (const std::int64_t micro_batches : {1, 2, 3, 4, 6}) {
    if (few && micro_batches != 3) continue;
    const auto expected = this->alone(micro_batches);
    for (const int ranks : {1, 2, 3, 4}) {
      if (ranks > micro_batches) continue;
      this->expect_bits(expected, micro_batches, ranks, {.check_every = 2});
      this->expect_bits(expected, micro_batches, ranks, {.divide_moments = true, .check_every = 0});
      this->expect_bits(expected, micro_batches, ranks, {.overlap = true, .check_every = 2});
      this->expect_bits(expected, micro_batches, ranks, {.overlap = true, .divide_moments = true, .check_every = 0});
    }
  }
}
TYPED_TEST(Together, GiveTheSameBitsByThePlainSumOnAsManyRanks) {
  using RankedModel = typename TypeParam::Model;
  const auto tree = this->alone(4);
  std::vector<support::Parameters<RankedModel>> weights(4);
  std::vector<double> losses(4);
  for (const std::size_t first : {0U, 2U}) {
    on_ranks<typename TypeParam::Comm>(2, [&](std::size_t rank, const typename TypeParam::Comm& comm) {
      Trainer<RankedModel> trainer(this->model(), this->tokens(), this->options(4));
      DataParallel together(comm, {.reduction = Reduction::sum, .divide_moments = first > 0, .check_every = 1});
      while (!trainer.ended()) trainer.step(together);
      weights[first + rank] = parameters_of(trainer.model());
      losses[first + rank] = trainer.history().back().loss;
    });
  }
  for (std::size_t i = 1; i < 4; ++i) expect_identical(weights[0], weights[i]);
  for (const double loss : losses) EXPECT_EQ(loss, losses[0]);
  EXPECT_EQ(tree.weights.size(), weights[0].size());
}

using Model = Mamba<float, NativeTraining>;
using Fixture = Together<Ranked<Model>>;

TEST(DataParallel, ResumesFromACheckpointWithAnotherNumberOfRanks) {
  const auto expected = Fixture::alone(4);
  const Folder folder;
  const auto file = folder / "training.safetensors";
  int ranks = 1;
  for (const bool divided : {false, true}) {
    std::filesystem::remove(file);
    for (const int next : {4, 1, 2, 3}) {
      ranks = next;
      on_ranks<ThreadRanks>(ranks, [&](std::size_t, const ThreadRanks& comm) {
        Trainer<Model> trainer(Fixture::model(), Fixture::tokens(), Fixture::options(4));
        DataParallel together(comm, {.divide_moments = divided});
        if (is_there(file)) resume_training(trainer, file);
        EXPECT_FALSE(together.any(false));
        EXPECT_TRUE(together.any(comm.rank() == ranks - 1));
        for (int i = 0; i < 2 && !trainer.ended(); ++i) {
          trainer.step(together);
          if (trainer.steps() % 2 == 0) trainer.validate(together, 3);
          together.on_first(trainer, [&] { save_training(trainer, file); });
        }
        together.on_first(trainer, [&] { save_training(trainer, file); });
        if (!trainer.ended()) return;
        EXPECT_EQ(expected.history, bits_of(trainer.history()));
        expect_identical(expected.weights, parameters_of(trainer.model()));
      });
    }
  }
}

/// A communicator that notes which threads send.
struct Noting : ThreadRanks {
  explicit Noting(ThreadRanks ranks) : ThreadRanks(std::move(ranks)) {}
  void send(std::span<const std::byte> bytes, int to) const {
    senders->insert(std::this_thread::get_id());  // one at a time, as promised
    ThreadRanks::send(bytes, to);
  }
  std::shared_ptr<std::set<std::thread::id>> senders = std::make_shared<std::set<std::thread::id>>();
};
TEST(DataParallel, SendsGradientsFromASecondThreadWhileItComputes) {
  for (const bool overlap : {false, true}) {
    on_ranks<Noting>(2, [&](std::size_t, const Noting& comm) {
      Trainer<Model> trainer(Fixture::model(), Fixture::tokens(), Fixture::options(2));
      DataParallel together(comm, {.overlap = overlap});
      EXPECT_EQ(together.overlaps(trainer.model()), overlap);
      trainer.step(together);
      EXPECT_EQ(comm.senders->size(), overlap ? 2U : 1U);
    });
  }
}
TEST(DataParallel, OverlapsWhereSomeLayersAreFrozen) {
  for (const char* const frozen : {"layers.0", "layers.1", "embedding"}) {
    const auto make = [&] {
      Model model = Fixture::model();
      freeze(model, {frozen});
      return model;
    };
    Trainer<Model> alone(make(), Fixture::tokens(), Fixture::options(3));
    while (!alone.ended()) alone.step();
    on_ranks<ThreadRanks>(2, [&](std::size_t, const ThreadRanks& comm) {
      Trainer<Model> trainer(make(), Fixture::tokens(), Fixture::options(3));
      DataParallel together(comm, {.overlap = true});
      while (!trainer.ended()) trainer.step(together);
      EXPECT_EQ(bits_of(alone.history()), bits_of(trainer.history()));
      expect_identical(parameters_of(alone.model()), parameters_of(trainer.model()));
    });
  }
}

TEST(DataParallel, NamesTheRankWhoseWeightsDiverge) {
  std::vector<std::string> messages(3);
  on_ranks<ThreadRanks>(3, [&](std::size_t rank, const ThreadRanks& comm) {
    Trainer<Model> trainer(Fixture::model(), Fixture::tokens(), Fixture::options(3));
    DataParallel together(comm, {.check_every = 2});
    trainer.step(together);
    if (rank == 1) trainer.mutable_model().norm_f.weight.view()(0, 3) += 1;
    try {
      while (!trainer.ended()) trainer.step(together);
    } catch (const RanksDifferError& error) {
      messages[rank] = error.what();
    }
    EXPECT_EQ(trainer.steps(), 2);
  });
  for (const std::string& message : messages) {
    EXPECT_EQ(message.find("rank 1: after step 2 it has other weights"), 0U) << message;
  }
}
TEST(DataParallel, NamesTheRankThatDiffersAndInWhat) {
  for (const char* const name : {"data", "seed", "groups", "average", "weights"}) {
    const std::string what = name;
    on_ranks<ThreadRanks>(2, [&](std::size_t rank, const ThreadRanks& comm) {
      const auto differs = [&](const char* in) { return rank == 1 && what == in; };
      auto options = Fixture::options(2);
      auto tokens = Fixture::tokens();
      Model model = Fixture::model();
      freeze(model, {"norm_f"});
      if (differs("data")) tokens[7] ^= 1;
      if (differs("seed")) options.seed = 6;
      options.adamw.groups = {{.part = "in_proj", .rate = differs("groups") ? 0.5 : 0.25}};
      options.average = differs("average") ? 0.5 : 0.9;
      if (differs("weights")) model.norm_f.weight.view()(0, 3) += 1;  // frozen ones
      Trainer<Model> trainer(std::move(model), std::move(tokens), options);
      DataParallel together(comm);
      try {
        trainer.step(together);
        ADD_FAILURE() << "was accepted";
      } catch (const RanksDifferError& error) {
        EXPECT_EQ(error.subject(), "rank 1");
        const bool of_options = what == "seed" || what == "groups" || what == "average";
        EXPECT_NE(error.found().find(of_options ? "options" : what), std::string::npos) << error.what();
      }
    });
  }
}
TEST(DataParallel, ReadsDataFromFilesOnceToCompareThem) {
  on_ranks<ThreadRanks>(2, [&](std::size_t, const ThreadRanks& comm) {
    const auto tokens = Fixture::tokens();
    std::size_t read = 0;
    const TokenSource source{tokens.size(), [&](std::size_t first, std::span<std::int32_t> some) {
                               std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(first), some.size(),
                                           some.begin());
                               read += some.size();
                             }};
    const auto options = Fixture::options(2);
    Trainer<Model> trainer(Fixture::model(), TokenWindows(source, options.validation_fraction, options.length),
                           options);
    DataParallel together(comm, {.check_every = 1});
    while (!trainer.ended()) trainer.step(together);
    EXPECT_EQ(trainer.data().fingerprint(), TokenWindows(tokens, 0, options.length).fingerprint());
    const auto windows = static_cast<std::size_t>(trainer.steps() * options.accumulate * options.batch);
    EXPECT_EQ(read, tokens.size() + windows * static_cast<std::size_t>(options.length + 1));
  });
}
/// What ranks that divide the moments keep of them is no checkpoint.
TEST(DataParallel, ARankWithoutAllMomentsSavesNothingAndResumesAll) {
  const Folder folder;
  const auto good = folder / "good.safetensors", lacking = folder / "lacking.safetensors";
  on_ranks<ThreadRanks>(2, [&](std::size_t rank, const ThreadRanks& comm) {
    Trainer<Model> trainer(Fixture::model(), Fixture::tokens(), Fixture::options(2));
    DataParallel together(comm, {.divide_moments = true});
    trainer.step(together);
    EXPECT_THROW(save_training(trainer, folder / ("of" + std::to_string(rank))), ArgumentError);
    EXPECT_FALSE(is_there(folder / ("of" + std::to_string(rank))));
    together.on_first(trainer, [&] { save_training(trainer, good); });
    if (rank == 0) {  // a name of the last moment, which rank 1 keeps
      std::string bytes = support::read_text(good);
      const std::string name = "\"variance.norm_f.weight\"";
      ASSERT_NE(bytes.find(name), bytes.npos);
      support::write_text(lacking, bytes.replace(bytes.find(name) + 1, 8, "Variance"));
    }
    together.any(true);
    trainer.step(together);
    const auto weights = parameters_of(trainer.model());
    EXPECT_THROW(resume_training(trainer, lacking), CheckpointError);
    expect_identical(weights, parameters_of(trainer.model()));
    resume_training(trainer, good);
    trainer.step(together);
    expect_identical(weights, parameters_of(trainer.model()));
  });
}
/// Its kernels would update its own parameters alone, and leave the others as they are.
TEST(DataParallel, ARankWithoutAllMomentsMakesNoStepByItself) {
  const auto expected = Fixture::alone(2);
  const Folder folder;
  const auto file = folder / "training.safetensors";
  on_ranks<ThreadRanks>(2, [&](std::size_t rank, const ThreadRanks& comm) {
    Trainer<Model> trainer(Fixture::model(), Fixture::tokens(), Fixture::options(2));
    DataParallel together(comm, {.divide_moments = true}), undivided(comm);
    trainer.step(together);
    const auto weights = parameters_of(trainer.model());
    EXPECT_THROW(trainer.step(), ArgumentError);
    EXPECT_THROW(trainer.step(undivided), ArgumentError);
    together.on_first(trainer, [&] { save_training(trainer, file); });  // rank 0 has all now, and rank 1 has not
    if (rank == 1) {
      EXPECT_THROW(trainer.step(), ArgumentError);
    }
    EXPECT_THROW(trainer.step(undivided), ArgumentError);
    EXPECT_EQ(trainer.steps(), 1);
    expect_identical(weights, parameters_of(trainer.model()));
    resume_training(trainer, file);
    while (!trainer.ended()) {
      trainer.step(undivided);
      if (trainer.steps() % 2 == 0) trainer.validate(undivided, 3);
    }
    expect_identical(expected.weights, parameters_of(trainer.model()));
  });
}
/// The average of the weights, whatever the number of ranks that train, validate and go on.
TEST(DataParallel, AveragesWeightsWithTheBitsOfOneRank) {
  const Folder folder;
  const auto file = folder / "training.safetensors";
  auto options = Fixture::options(4);
  options.average = 0.9;
  Trainer<Model> alone(Fixture::model(), Fixture::tokens(), options);
  while (!alone.ended()) {
    alone.step();
    alone.validate(3);
  }
  const auto history = bits_of(alone.history());
  const auto average = parameters_of(alone.averaged());
  for (const int ranks : {3, 1, 4}) {
    on_ranks<ThreadRanks>(ranks, [&](std::size_t, const ThreadRanks& comm) {
      Trainer<Model> trainer(Fixture::model(), Fixture::tokens(), options);
      DataParallel together(comm, {.divide_moments = true});
      if (is_there(file)) resume_training(trainer, file);
      for (int i = 0; i < 2; ++i) {
        trainer.step(together);
        trainer.validate(together, 3);
      }
      together.on_first(trainer, [&] { save_training(trainer, file); });
      if (!trainer.ended()) return;
      EXPECT_EQ(history, bits_of(trainer.history()));
      expect_identical(average, parameters_of(trainer.averaged()));
    });
  }
}

TEST(DataParallel, TellsAllRanksWhatFailsOnTheFirst) {
  on_ranks<ThreadRanks>(3, [&](std::size_t rank, const ThreadRanks& comm) {
    Trainer<Model> trainer(Fixture::model(), Fixture::tokens(), Fixture::options(3));
    DataParallel together(comm, {.divide_moments = true});
    trainer.step(together);
    try {
      together.on_first(trainer, [] { throw FileError("a file", "the disk is full"); });
      ADD_FAILURE() << "was accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("a file: the disk is full"), std::string::npos) << error.what();
      EXPECT_EQ(rank == 0, dynamic_cast<const FileError*>(&error) != nullptr);
    }
    trainer.step(together);  // all go on
  });
}
TEST(DataParallel, RefusesMoreRanksThanMicroBatches) {
  on_ranks<ThreadRanks>(2, [&](std::size_t, const ThreadRanks& comm) {
    Trainer<Model> trainer(Fixture::model(), Fixture::tokens(), Fixture::options(1));
    DataParallel together(comm);
    EXPECT_THROW(trainer.step(together), ArgumentError);
    EXPECT_THROW(DataParallel(comm, {.check_every = -1}), ArgumentError);
  });
}
TEST(DataParallel, DividesTheMemoryOfTheMoments) {
  std::vector<std::size_t> sizes(3);
  std::size_t all = 0;
  on_ranks<ThreadRanks>(3, [&](std::size_t rank, const ThreadRanks& comm) {
    Trainer<Model> trainer(Fixture::model(), Fixture::tokens(), Fixture::options(3));
    DataParallel together(comm, {.divide_moments = true});
    if (rank == 0) all = trainer.optimizer().mean().memory().cols();
    trainer.step(together);
    sizes[rank] = trainer.optimizer().mean().memory().cols();
  });
  EXPECT_EQ(sizes[0] + sizes[1] + sizes[2], all);
  for (const std::size_t size : sizes) EXPECT_LT(size, 2 * all / 3);
}

TEST(MicroBatchesOfAStep, HaveALossThatIsTheMeanOverAll) {
  auto options = Fixture::options(1);
  options.tape.dropout = 0;
  options.accumulate = 4;
  Trainer<Model> one_after_another(Fixture::model(), Fixture::tokens(), options);
  options.accumulate = 1;
  options.micro_batches = 4;  // the same windows
  Trainer<Model> in_tree(Fixture::model(), Fixture::tokens(), options);
  const StepRecord a = one_after_another.step(), b = in_tree.step();
  EXPECT_EQ(a.loss, b.loss);
  EXPECT_NEAR(a.gradient_norm, b.gradient_norm, 1e-5 * a.gradient_norm);
  options.micro_batches = 0;
  EXPECT_THROW(Trainer<Model>(Fixture::model(), Fixture::tokens(), options), ArgumentError);
}

}  // namespace data_parallel_test
