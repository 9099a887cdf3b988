// Ranks with a card each, without cards: the driver is that of support/fake_cuda.cpp, and NCCL that of
// support/fake_nccl.cpp. Of all kernels only add and copy compute there, which is what sums over ranks need.
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "minimamba/backend/cuda_training.hpp"
#include "minimamba/distributed/cards.hpp"
#include "minimamba/distributed/data_parallel.hpp"
#include "minimamba/train.hpp"
#include "support/fake_driver.hpp"
#include "support/fake_nccl.hpp"
#include "support/ranks.hpp"

namespace cards_cuda_test {

using namespace minimamba;
using support::expect_success;
using support::fake_driver;
using support::FakeCuda;
using support::FakeNccl;
using support::on_ranks;

FakeNccl& fake_nccl() {
  void* const library = ::dlopen(FAKE_NCCL, RTLD_NOW | RTLD_LOCAL);
  FakeNccl* (*settings)() = nullptr;
  if (library != nullptr) settings = reinterpret_cast<FakeNccl* (*)()>(::dlsym(library, "fake_nccl"));
  if (settings == nullptr) std::abort();
  ::setenv("MINIMAMBA_NCCL", FAKE_NCCL, 1);
  return *settings();
}
FakeCuda& cards(int count) {
  FakeCuda& fake = fake_driver();
  fake.cards = count;
  fake.adds = true;
  return fake;
}

/// The gradients of `ranks` ranks of one micro-batch each, but for the last, which has two that are no node.
constexpr std::size_t width = 3000;
std::vector<std::vector<float>> gradients_of(std::size_t ranks, std::size_t rank) {
  std::vector<std::vector<float>> sums(rank + 1 == ranks && ranks % 2 == 0 ? 2 : 1, std::vector<float>(width));
  Random random(rank);
  for (auto& sum : sums) {
    for (float& x : sum) x = static_cast<float>(random.normal() * std::exp(8 * random.normal()));
  }
  return sums;
}
struct Division {
  std::vector<MicroBatches> parts;
  std::vector<std::size_t> shares{0};

  explicit Division(std::size_t ranks) {
    for (std::size_t r = 0; r < ranks; ++r) {
      parts.push_back({r, r + gradients_of(ranks, r).size()});
      shares.push_back((r + 1) * width / ranks);
    }
  }
};
std::vector<std::vector<float>> sums_on_hosts(std::size_t ranks) {
  const Division division(ranks);
  std::vector<std::vector<float>> found(ranks);
  on_ranks<ThreadRanks>(static_cast<int>(ranks), [&](std::size_t rank, const ThreadRanks& comm) {
    auto sums = gradients_of(ranks, rank);
    std::vector<View<float>> views;
    for (auto& sum : sums) views.emplace_back(sum.data(), 1, width);
    detail::HostRowsOf<ThreadRanks, float> rows(comm);
    detail::SumInTree(rows, division.parts, division.shares, views).run();
    detail::all_gather(rows, views.back(), std::span<const std::size_t>(division.shares));
    found[rank] = sums.back();
  });
  return found;
}
template <class Links>
std::vector<std::vector<float>> sums_on_cards(std::size_t ranks) {
  const Division division(ranks);
  std::vector<std::vector<float>> found(ranks, std::vector<float>(width));
  on_ranks<ThreadRanks>(static_cast<int>(ranks), [&](std::size_t rank, const ThreadRanks& comm) {
    const CudaBackend<float> backend({.device = static_cast<int>(rank)});
    const CardRanks<ThreadRanks, Links> card_ranks(comm, Links::open(comm, backend.device()));
    REQUIRE(card_ranks.reaches(backend));
    std::vector<CudaBuffer<float>> memory;
    std::vector<View<float>> views;
    for (const auto& sum : gradients_of(ranks, rank)) {
      memory.push_back(backend.allocate<float>(width));
      backend.upload(std::span(sum), memory.back().data());
      views.emplace_back(memory.back().data(), 1, width);
    }
    detail::DeviceRowsOf<CardRanks<ThreadRanks, Links>, CudaBackend<float>> rows(card_ranks, backend);
    detail::SumInTree(rows, division.parts, division.shares, views).run();
    detail::all_gather(rows, views.back(), std::span<const std::size_t>(division.shares));
    backend.download(views.back().data(), found[rank]);
  });
  return found;
}
TEST(RanksOfCards, AddInTheTreeThatHostsAddIn) {
  expect_success([] {
    FakeCuda& fake = cards(5);
    FakeNccl& nccl = fake_nccl();
    for (const std::size_t ranks : {2U, 3U, 4U, 5U}) {
      const auto expected = sums_on_hosts(ranks);
      REQUIRE(sums_on_cards<NcclLinks>(ranks) == expected);
      REQUIRE(nccl.messages > 0 && nccl.links == nccl.ended && nccl.aborted == 0 && fake.peer_copies == 0);
      REQUIRE(sums_on_cards<PeerLinks>(ranks) == expected);
      REQUIRE(fake.peer_copies > 0);
      fake.peer_copies = 0;
    }
    REQUIRE(fake.allocated == 0 && fake.contexts == 0 && fake.events == 0);
  });
}

using Model = Mamba<float, CudaTraining>;
template <class Links>
using OfCards = CardRanks<ThreadRanks, Links>;

/// Two steps on two cards. Returns the size of the gradients.
template <class Links>
std::size_t train(DataParallelOptions how, bool linked = true) {
  std::size_t size = 0;
  on_ranks<ThreadRanks>(2, [&](std::size_t rank, const ThreadRanks& comm) {
    const CudaTraining<float> backend({.device = static_cast<int>(rank)});
    Trainer<Model> trainer(Model({.d_model = 16, .n_layer = 2, .vocab_size = 32}, backend),
                           std::vector<std::int32_t>(500, 1),
                           {.batch = 2, .length = 40, .micro_batches = 2, .schedule = {.steps = 2}});
    how.check_every = 0;
    DataParallel together(linked ? OfCards<Links>(comm, Links::open(comm, backend.device())) : OfCards<Links>(comm),
                          how);
    REQUIRE(together.communicator().reaches(backend) == linked);
    if (rank == 0) size = trainer.optimizer().mean().memory().cols() * sizeof(float);
    while (!trainer.ended()) trainer.step(together);
    together.on_first(trainer, [] {});
  });
  return size;
}
TEST(RanksOfCards, SendGradientsFromCardToCard) {
  expect_success([] {
    FakeCuda& fake = cards(2);
    FakeNccl& nccl = fake_nccl();
    const std::size_t size = train<NcclLinks>({});
    REQUIRE(nccl.bytes == 2 * 2 * size);  // of two steps, by both: half to be added, and half that was added
    REQUIRE(nccl.messages == 2 * 2 * 2 && nccl.sums == 0);
    train<NcclLinks>({.divide_moments = true});
    REQUIRE(nccl.bytes == 2 * 2 * 2 * size && nccl.sums == 0);  // parameters in place of gradients
    train<NcclLinks>({.reduction = Reduction::sum});
    REQUIRE(nccl.bytes == 2 * 2 * 2 * size && nccl.sums == 2 * 2);
    REQUIRE(nccl.links == 6 && nccl.ended == 6 && fake.peer_copies == 0);
    REQUIRE(fake.allocated == 0 && fake.contexts == 0 && fake.events == 0 && fake.graphs == 0);
  });
}
TEST(RanksOfCards, CopyByTheDriverInOneProcess) {
  expect_success([] {
    FakeCuda& fake = cards(2);
    train<PeerLinks>({});
    REQUIRE(fake.peer_copies == 2 * 2 * 2);
    train<PeerLinks>({.reduction = Reduction::sum});  // which the driver has not: the tree of as many
    REQUIRE(fake.peer_copies == 2 * 2 * 2 * 2 && fake.allocated == 0 && fake.contexts == 0 && fake.events == 0);
  });
}
TEST(RanksOfCards, UseTheMemoryOfTheHostWithoutLinks) {
  expect_success([] {
    FakeCuda& fake = cards(2);
    FakeNccl& nccl = fake_nccl();
    train<NcclLinks>({}, false);
    REQUIRE(nccl.links == 0 && fake.peer_copies == 0 && fake.allocated == 0);
  });
}

/// What each of two ranks is told where the links cannot be made, or a message fails.
std::vector<std::string> refusals(bool one_card, bool sends = false) {
  std::vector<std::string> words(2);
  on_ranks<ThreadRanks>(2, [&](std::size_t rank, const ThreadRanks& comm) {
    const CudaBackend<float> backend({.device = one_card ? 0 : static_cast<int>(rank)});
    try {
      const auto links = NcclLinks::open(comm, backend.device());
      if (sends) links->exchange(std::as_bytes(std::span("words")), 1 - comm.rank(), {}, 1 - comm.rank());
    } catch (const LinkError& error) {
      words[rank] = error.what();
    }
  });
  return words;
}
void require_words(const std::vector<std::string>& refusals, const char* first, const char* second) {
  REQUIRE(refusals[0].find(first) != std::string::npos);
  REQUIRE(refusals[1].find(second) != std::string::npos);
}
TEST(LinksOfCards, SayThatThereIsNoNccl) {
  expect_success([] {
    cards(2);
    ::setenv("MINIMAMBA_NCCL", "/nowhere/libnccl.so.2", 1);
    const char* const words = "NCCL: /nowhere/libnccl.so.2 cannot be opened: install NCCL";
    require_words(refusals(false), words, words);
  });
  expect_success([] {
    cards(2);
    ::setenv("MINIMAMBA_NCCL", FAKE_CUDA, 1);  // a library without its functions
    require_words(refusals(false), "expected version 2.7 or later", "expected version 2.7 or later");
  });
}
TEST(LinksOfCards, NeedACardForEachRank) {
  expect_success([] {
    FakeCuda& fake = cards(2);
    fake_nccl();
    const char* const words = "expected a card for each rank, but ranks 0 and 1 have the same";
    require_words(refusals(true), words, words);
    fake.no_uuid = true;
    require_words(refusals(false), "", "");  // NCCL would say it
  });
}
TEST(LinksOfCards, TellAllRanksWhatFailsOnOne) {
  expect_success([] {
    cards(2);
    FakeNccl& nccl = fake_nccl();
    nccl.id_error = 2;
    require_words(refusals(false), "making an id failed: unhandled system error",
                  "rank 0 cannot use it: NCCL: making an id failed");
    nccl.id_error = 0;
    nccl.begin_error = 3;
    require_words(refusals(false), "linking the cards failed", "linking the cards failed");
    nccl.begin_error = 0;
    nccl.state = 6;
    require_words(refusals(false, true), "a message between cards failed", "a message between cards failed");
    REQUIRE(nccl.aborted == 2 && nccl.ended == 0);  // while a rank unwinds
  });
}

}  // namespace cards_cuda_test
