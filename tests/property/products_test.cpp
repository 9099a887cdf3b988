// How the native backend cuts products into blocks of rows: each row once, no block larger than its scratch, no number
// written behind it, and a row's bits the same whatever is multiplied beside it. At the sizes of real models.
#include <thread>

#include "support/sanitizer.hpp"
#include "support/support.hpp"

namespace products_test {

using namespace minimamba;
using support::HostMatrix;
using support::random_matrix;

constexpr std::size_t widths[] = {40, 768, 1536, 2048, 4096, 5120, 8192};  // of x

TEST(BlocksOfRows, CoverTheRowsOnceAndFitTheirScratch) {
  for (const std::size_t in : widths) {
    for (std::size_t rows = 1; rows <= 700; ++rows) {
      const std::size_t block = native::row_block(rows, in), most = native::max_packed_rows(rows, in);
      ASSERT_GT(block, 0U);
      ASSERT_LE(block, most) << rows << " rows of " << in;
      ASSERT_EQ(block % native::row_unit, 0U);  // whole tiles, of every size that divides it
      ASSERT_LE(most, native::max_packed_rows(rows + 1, in));
      ASSERT_LE(block * in, std::max<std::size_t>(200'000, native::row_unit * in));  // stays in the second cache
      const std::size_t blocks = (rows + block - 1) / block;
      ASSERT_LT((blocks - 1) * block, rows);  // the last is not empty
      ASSERT_LE(blocks, (rows + most - 1) / most) << "each block reads all weights";
    }
  }
}

TEST(BlocksOfRows, OfEveryThreadFitTheScratchOfTheWholeProduct) {
  for (const std::size_t in : widths) {
    for (std::size_t rows = 1; rows <= 700; ++rows) {
      for (std::size_t threads = 1; threads <= 16; ++threads) {
        std::size_t covered = 0;
        const native::Division division = native::division(rows, 32, threads);
        for (std::size_t part = 0; part < threads; ++part) {
          const native::Part share =
              division.part(division.count * part / threads, division.count * (part + 1) / threads);
          const std::size_t some = share.last_row - share.first_row;
          ASSERT_LE(native::row_block(some, in), native::max_packed_rows(rows, in));
          ASSERT_LE(native::matmul_scratch(some, in), native::matmul_scratch(rows, in));
          ASSERT_LE(native::compact_scratch(some, in), native::compact_scratch(rows, in));
          covered += some * (share.last_panel - share.first_panel);
        }
        ASSERT_EQ(covered, rows * 32) << rows << " rows, " << threads << " threads";
      }
    }
  }
}

class Products : public testing::TestWithParam<InstructionSet> {
 protected:
  void SetUp() override {
    if (!available(GetParam())) GTEST_SKIP() << "this machine has no " << name_of(GetParam());
  }

  /// Multiplies with scratch of exactly the size that is asked for, and looks at what lies behind it.
  template <class W, class Scalar, class Matrix, class Kernel>
  static void multiply_exactly(const HostMatrix<Scalar>& x, const Matrix& weight, HostMatrix<Scalar>& y,
                               std::size_t scratch_size, Kernel kernel) {
    constexpr std::size_t behind = 4096;
    HostBuffer<Scalar> scratch(scratch_size + behind);
    std::fill_n(scratch.data() + scratch_size, behind, Scalar(123));
    native::MatmulTask<Scalar> task{};
    task.x = x.values.data();
    task.x_stride = task.in = x.cols;
    task.y = y.values.data();
    task.y_stride = task.out = y.cols;
    task.last_row = x.rows;
    task.last_panel = weight.panels();
    task.scratch = scratch.data();
    task.scratch_size = scratch_size;
    kernel(task);
    for (std::size_t i = 0; i < behind; ++i) ASSERT_EQ(scratch.data()[scratch_size + i], Scalar(123)) << i;
  }

  /// The product of all rows against that of each row alone.
  template <class W, class Scalar = float>
  static void check(std::size_t rows, std::size_t in, std::size_t out = 33) {
    SCOPED_TRACE(std::string(Format<W>::name) + ", " + std::to_string(rows) + " rows of " + std::to_string(in));
    const NativeBackend<Scalar> backend({.threads = 1, .instruction_set = GetParam()});
    auto x = random_matrix<Scalar>(rows, in, 1);
    const auto values = random_matrix<Scalar>(out, in, 2);
    if (std::is_same_v<W, bf16>) round_activations<W>(x.values.data(), rows * in, x.values.data());
    auto weight = backend.template make_matrix<W>(out, in);
    backend.upload_rows(values.view(), 0, weight);
    HostMatrix<Scalar> y(rows, out), row(1, out);
    if constexpr (std::is_same_v<W, Scalar>) {
      multiply_exactly<W>(x, weight, y, native::matmul_scratch(rows, in), [&](native::MatmulTask<Scalar> task) {
        task.weight = weight.data();
        backend.kernels().matmul(task);
      });
    } else if constexpr (std::is_same_v<Scalar, float>) {
      multiply_exactly<W>(x, weight, y, native::compact_scratch(rows, in), [&](const native::MatmulTask<float>& task) {
        native::compact_matmul_for<W>(GetParam())({task, weight.data()});
      });
    }
    for (const std::size_t i : {std::size_t{0}, rows / 2, rows - 1}) {
      backend.matmul(x.view().rows_from(i, 1), weight, row.view());
      EXPECT_TRUE(identical(row, support::copy_of(y.view().rows_from(i, 1)))) << "row " << i;
    }
  }
};

TEST_P(Products, WriteOnlyTheScratchThatTheyAskFor) {
  for (const std::size_t in : {std::size_t{768}, std::size_t{1536}, std::size_t{4096}, std::size_t{5120}}) {
    const std::size_t most = native::max_packed_rows(10'000, in);  // a block whose last tile may be one too many
    for (const std::size_t rows : {most - 1, most, most + 1, 2 * most - 1, 2 * most, 2 * most + 1, 3 * most}) {
      check<float>(rows, in);
      check<double, double>(rows, in);
      check<bf16>(rows, in);
      check<f16>(rows, in);
      check<q8>(rows, in);
      check<q4>(rows, in);
    }
  }
}

/// A thread's scratch grows, and hides what writes behind it: so each product has a thread of its own.
TEST_P(Products, OfManyRowsInAFreshThreadAreThoseOfEachRow) {
  const auto check_rows = [&]<class W, class Scalar>(W, Scalar) {
    for (const int threads : {1, 2, 3, 8}) {
      for (const auto& [rows, in] : {std::pair<std::size_t, std::size_t>{240, 768},
                                     {96, 2048},
                                     {192, 1024},
                                     {48, 2560},
                                     {290, 3983},
                                     {519, 4509}}) {
        std::thread([&, rows = rows, in = in] {
          SCOPED_TRACE(std::string(Format<W>::name) + ", " + std::to_string(rows) + " rows of " + std::to_string(in) +
                       ", threads " + std::to_string(threads));
          const NativeBackend<Scalar> backend({.threads = threads, .instruction_set = GetParam()});
          const auto x = random_matrix<Scalar>(rows, in, 1), values = random_matrix<Scalar>(40, in, 2);
          auto weight = backend.template make_matrix<W>(40, in);
          backend.upload_rows(values.view(), 0, weight);
          HostMatrix<Scalar> y(rows, 40), row(1, 40);
          backend.matmul(x.view(), weight, y.view());
          for (std::size_t i = 0; i < rows; i += support::under_a_sanitizer ? 101 : 11) {
            backend.matmul(x.view().rows_from(i, 1), weight, row.view());
            EXPECT_TRUE(identical(row, support::copy_of(y.view().rows_from(i, 1)))) << "row " << i;
          }
        }).join();
      }
    }
  };
  check_rows(float(), float());
  check_rows(bf16(), float());
  check_rows(f16(), float());
  check_rows(q8(), float());
  check_rows(q4(), float());
  check_rows(double(), double());
  check_rows(bf16(), double());
}

/// By weights that pass each number on: a number that is quantised otherwise is off by a whole step. Also where a
/// compiler may fuse products and sums, with -march=native.
TEST_P(Products, QuantiseActivationsAsTheReferenceDoes) {
  constexpr std::size_t rows = 20'000, width = 32;
  const auto x = random_matrix<float>(rows, width, 3);
  HostMatrix<float> one_each(width, width), native(rows, width), reference(rows, width);
  for (std::size_t i = 0; i < width; ++i) one_each.view()(i, i) = 1;
  const auto multiply = [&](const auto& backend, HostMatrix<float>& y) {
    auto weight = backend.template make_matrix<q8>(width, width);
    backend.upload_rows(one_each.view(), 0, weight);
    backend.matmul(x.view(), weight, y.view());
  };
  multiply(NativeBackend<float>({.threads = 1, .instruction_set = GetParam()}), native);
  multiply(ReferenceBackend<float>(), reference);
  for (std::size_t i = 0; i < rows; ++i) {
    const double step = support::largest_magnitude(support::copy_of(x.view().rows_from(i, 1))) / 127;
    for (std::size_t j = 0; j < width; ++j) {
      ASSERT_NEAR(static_cast<double>(native(i, j)), static_cast<double>(reference(i, j)), 0.01 * step) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(OnEachInstructionSet, Products,
                         testing::Values(InstructionSet::portable, InstructionSet::neon, InstructionSet::avx2,
                                         InstructionSet::avx512, InstructionSet::avx512bf16),
                         [](const auto& set) { return std::string(name_of(set.param)); });

}  // namespace products_test
