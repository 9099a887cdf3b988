// The sum of ranks is that of a fixed tree over all micro-batches, however the ranks divide these.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <vector>

#include "minimamba/distributed/data_parallel.hpp"
#include "support/ranks.hpp"

namespace sum_in_tree_test {

using namespace minimamba;
using support::Late;
using support::on_ranks;

float add_in_tree(const std::vector<float>& leaves, const MicroBatches& node) {
  if (node.size() == 1) return leaves[node.begin];
  const auto [left, right] = detail::halves(node);
  return add_in_tree(leaves, left) + add_in_tree(leaves, right);
}
/// The largest nodes of the tree in `own`, as sums.
void add_own(const std::vector<float>& leaves, const MicroBatches& node, const MicroBatches& own,
             std::vector<float>& sums) {
  if (!node.touches(own)) return;
  if (own.contains(node)) return sums.push_back(add_in_tree(leaves, node));
  const auto [left, right] = detail::halves(node);
  add_own(leaves, left, own, sums);
  add_own(leaves, right, own, sums);
}

template <class Comm>
void expect_sums_of_the_tree(std::size_t count, std::size_t ranks) {
  constexpr std::size_t width = 11;
  std::vector<std::vector<float>> leaves(width, std::vector<float>(count));  // of each element
  Random random(count * 100 + ranks);
  for (auto& of_element : leaves) {
    for (float& leaf : of_element) leaf = static_cast<float>(random.normal() * std::exp(8 * random.normal()));
  }
  std::vector<MicroBatches> parts;
  std::vector<std::size_t> offsets;
  for (std::size_t r = 0; r < ranks; ++r) parts.push_back({r * count / ranks, (r + 1) * count / ranks});
  for (std::size_t r = 0; r <= ranks; ++r) offsets.push_back(r * r * width / (ranks * ranks));  // unequal, some empty
  std::vector<float> found(width);
  on_ranks<Comm>(static_cast<int>(ranks), [&](std::size_t rank, const Comm& comm) {
    std::vector<std::vector<float>> sums;
    for (std::size_t element = 0; element < width; ++element) {
      std::vector<float> own;
      add_own(leaves[element], {0, count}, parts[rank], own);
      sums.resize(own.size(), std::vector<float>(width));
      for (std::size_t i = 0; i < own.size(); ++i) sums[i][element] = own[i];
    }
    std::vector<View<float>> views;
    for (auto& sum : sums) views.emplace_back(sum.data(), 1, width);
    detail::HostRowsOf<Comm, float> rows(comm);
    detail::SumInTree(rows, parts, offsets, views).run();
    for (std::size_t i = offsets[rank]; i < offsets[rank + 1]; ++i) found[i] = sums.back()[i];
  });
  for (std::size_t element = 0; element < width; ++element) {
    EXPECT_EQ(found[element], add_in_tree(leaves[element], {0, count})) << count << " on " << ranks;
  }
}
TEST(SumInTree, IsThatOfOneRankHoweverTheLeavesAreDivided) {
  for (std::size_t count = 1; count <= 13; ++count) {
    for (std::size_t ranks = 1; ranks <= count; ++ranks) expect_sums_of_the_tree<ThreadRanks>(count, ranks);
  }
  for (const std::size_t ranks : {2U, 3U, 4U, 5U}) expect_sums_of_the_tree<Late>(8, ranks);
}

}  // namespace sum_in_tree_test
