// Narrow weights on the native backend, with each instruction set that this machine has: products against sums in
// double of exactly what is multiplied, and the bits of a row whatever is multiplied beside it.
#include "support/support.hpp"
#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace narrow_test {

using namespace minimamba;
using support::HostMatrix;
using support::random_matrix;

constexpr std::size_t block = 32;

/// x as products with blocks of whole numbers take it: 8 bits with one scale for 32 numbers of a row.
HostMatrix<double> quantized(const HostMatrix<float>& x) {
  HostMatrix<double> result(x.rows, x.cols);
  for (std::size_t i = 0; i < x.rows; ++i) {
    for (std::size_t k = 0; k < x.cols; k += block) {
      const std::size_t end = std::min(k + block, x.cols);
      float largest = 0;
      for (std::size_t j = k; j < end; ++j) largest = std::max(largest, std::abs(x(i, j)));
      const float scale = largest / 127, inverse = largest > 0 ? 1 / scale : 0;
      for (std::size_t j = k; j < end; ++j) {
        result.view()(i, j) = static_cast<double>(scale) * static_cast<double>(std::nearbyint(x(i, j) * inverse));
      }
    }
  }
  return result;
}

class NarrowWeights : public testing::TestWithParam<InstructionSet> {
 protected:
  void SetUp() override {
    if (!available(GetParam())) GTEST_SKIP() << "this machine has no " << name_of(GetParam());
  }
  static NativeBackend<float> backend(int threads = 2, Activations activations = Activations::rounded) {
    return NativeBackend<float>({.threads = threads, .instruction_set = GetParam(), .activations = activations});
  }

  template <class W>
  static auto packed(const NativeBackend<float>& backend, const HostMatrix<float>& weight) {
    auto matrix = backend.make_matrix<W>(weight.rows, weight.cols);
    const std::size_t first = weight.rows / 3;  // not at the border of a panel
    backend.upload_rows(weight.view().rows_from(0, first), 0, matrix);
    backend.upload_rows(weight.view().rows_from(first, weight.rows - first), first, matrix);
    return matrix;
  }

  template <class W>
  static void check_product(std::size_t rows, std::size_t in, std::size_t out, Activations activations) {
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(in) + " x " + std::to_string(out));
    const auto native = backend(2, activations);
    expect_sums<W>(native, random_matrix<float>(rows, in, 1), packed<W>(native, random_matrix<float>(out, in, 2)));
  }

  /// x times the weights, against sums in double of what the matrix holds.
  template <class W, class Matrix>
  static void expect_sums(const NativeBackend<float>& native, const HostMatrix<float>& x, const Matrix& matrix) {
    const std::size_t rows = x.rows, in = x.cols, out = matrix.rows();
    const Activations activations = native.activations();
    HostMatrix<float> stored(out, in), y(rows, out);
    native.download_rows(matrix, 0, stored.view());
    native.matmul(x.view(), matrix, y.view());
    HostMatrix<double> taken = quantized(x);
    if (Format<W>::block_size == 1 || activations == Activations::exact) {
      const bool rounds = std::is_same_v<W, bf16> && activations == Activations::rounded;
      std::transform(x.values.begin(), x.values.end(), taken.values.begin(), [&](float number) {
        return static_cast<double>(rounds ? static_cast<float>(bf16(number)) : number);
      });
    }
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::size_t j = 0; j < out; ++j) {
        double sum = 0, magnitude = 0;
        for (std::size_t k = 0; k < in; ++k) {
          const double term = taken(i, k) * static_cast<double>(stored(j, k));
          sum += term;
          magnitude += std::abs(term);
        }
        ASSERT_NEAR(static_cast<double>(y(i, j)), sum, support::tolerance<float>(8) * magnitude + 1e-30);
      }
    }
  }

  /// Blocks as files may hold them, with integers that our own packing does not make: -128 of q8 everywhere in a block.
  template <class W>
  static void check_any_blocks(std::size_t rows) {
    using Block = typename Format<W>::Block;
    constexpr std::size_t in = 96, out = 70, in_row = in / block;
    std::vector<Block> blocks(out * in_row), again(blocks.size());
    Random random(6);
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      blocks[b].scale = f16(static_cast<float>(random.uniform(-1, 1)));
      std::int8_t bytes[sizeof(Block) - 2];
      for (std::int8_t& byte : bytes) byte = static_cast<std::int8_t>(b % 4 == 0 ? -128 : random.uniform(-128, 128));
      std::memcpy(reinterpret_cast<char*>(&blocks[b]) + 2, bytes, sizeof(bytes));
    }
    auto x = random_matrix<float>(rows, in, 1);
    for (std::size_t k = 0; k < in; ++k) x.view()(rows - 1, k) = rows % 2 == 0 ? -1.0F : 1.0F;
    for (const Activations activations : {Activations::rounded, Activations::exact}) {
      const auto native = backend(2, activations);
      auto matrix = native.template make_matrix<W>(out, in);
      const View<const Block> all(blocks.data(), out, in_row);
      native.template upload_blocks<W>(all.rows_from(0, 37), 0, matrix);
      native.template upload_blocks<W>(all.rows_from(37, out - 37), 37, matrix);
      native.template download_blocks<W>(matrix, 0, View<Block>(again.data(), out, in_row));
      ASSERT_EQ(std::memcmp(again.data(), blocks.data(), blocks.size() * sizeof(Block)), 0);
      expect_sums<W>(native, x, matrix);
    }
  }

  template <class W>
  static void check_products() {
    for (const std::size_t rows : support::Sizes{1, 2, 4, 5, 12, 13, 31}) {
      for (const Activations activations : {Activations::rounded, Activations::exact}) {
        check_product<W>(rows, 1, 1, activations);
        check_product<W>(rows, 5, 33, activations);
        check_product<W>(rows, 48, 130, activations);
        check_product<W>(rows, 100, 31, activations);
        check_product<W>(rows, 768, 300, activations);
      }
    }
  }

  template <class W>
  static void check_bits(Activations activations = Activations::rounded) {
    for (const std::size_t in : support::Sizes{1, 7, 32, 63, 200}) {
      const std::size_t out = 170, all = 90;
      const auto x = random_matrix<float>(all, in, 3), weight = random_matrix<float>(out, in, 4);
      const auto one = backend(1, activations), five = backend(5, activations);
      const auto matrix = packed<W>(one, weight);
      HostMatrix<float> whole(all, out);
      one.matmul(x.view(), matrix, whole.view());
      for (const std::size_t rows : support::Sizes{1, 2, 3, 5, 9, 14, 30}) {
        for (std::size_t i = 0; i + rows <= all; i += rows) {
          HostMatrix<float> part(rows, out);
          (i % 2 == 0 ? one : five).matmul(x.view().rows_from(i, rows), matrix, part.view());
          ASSERT_TRUE(identical(part, support::copy_of(whole.view().rows_from(i, rows)))) << rows << " rows of " << in;
        }
      }
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Sets, NarrowWeights,
                         testing::Values(InstructionSet::portable, InstructionSet::neon, InstructionSet::avx2,
                                         InstructionSet::avx512, InstructionSet::avx512bf16),
                         [](const auto& set) { return std::string(name_of(set.param)); });

TEST_P(NarrowWeights, OfBf16MultiplyAsTheirSum) { check_products<bf16>(); }
TEST_P(NarrowWeights, OfF16MultiplyAsTheirSum) { check_products<f16>(); }
TEST_P(NarrowWeights, OfQ8MultiplyAsTheSumOfQuantisedNumbers) { check_products<q8>(); }
TEST_P(NarrowWeights, OfQ4MultiplyAsTheSumOfQuantisedNumbers) { check_products<q4>(); }

TEST_P(NarrowWeights, OfAnyBlocksMultiplyAsTheirSum) {
  for (const std::size_t rows : support::Sizes{1, 2, 13}) {
    check_any_blocks<q8>(rows);
    check_any_blocks<q4>(rows);
  }
}

#if defined(__unix__) || defined(__APPLE__)
/// Memory of which the last `bytes` are used: whoever reads beyond them faults.
class Guarded {
 public:
  explicit Guarded(std::size_t bytes) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const std::size_t whole = (bytes + page - 1) / page * page;
    size_ = whole + page;
    void* const pages = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    pages_ = static_cast<std::uint8_t*>(pages);
    ::mprotect(pages_ + whole, page, PROT_NONE);
    data_ = pages_ + whole - bytes;
  }
  ~Guarded() { ::munmap(pages_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  const std::uint8_t* data() const { return data_; }

 private:
  std::uint8_t *pages_ = nullptr, *data_ = nullptr;
  std::size_t size_ = 0;
};

/// The products of every number of panels, whose weights end where memory ends.
template <class W>
void read_no_further_than_the_weights(InstructionSet set) {
  constexpr std::size_t in = 64;
  const auto x = random_matrix<float>(13, in, 1);
  std::vector<float> scratch(native::compact_scratch(13, in));
  for (std::size_t panels = 1; panels <= 9; ++panels) {
    const Guarded weights(panels * native::panel_bytes<W>(in));
    HostMatrix<float> y(13, panels * native::panel);
    for (const std::size_t rows : support::Sizes{1, 2, 13}) {
      native::compact_matmul_for<W>(set)({{x.values.data(), in, nullptr, y.values.data(), y.cols, in, y.cols, 0, rows,
                                           0, panels, scratch.data(), scratch.size()},
                                          weights.data()});
    }
    EXPECT_EQ(y.values, HostMatrix<float>(13, y.cols).values);
  }
}

TEST_P(NarrowWeights, AreReadNoFurtherThanTheyGo) {
  read_no_further_than_the_weights<bf16>(GetParam());
  read_no_further_than_the_weights<f16>(GetParam());
  read_no_further_than_the_weights<q8>(GetParam());
  read_no_further_than_the_weights<q4>(GetParam());
}
#endif

TEST_P(NarrowWeights, GiveARowTheSameBitsWhateverIsBesideIt) {
  check_bits<bf16>();
  check_bits<f16>();
  check_bits<q8>();
  check_bits<q4>();
  check_bits<bf16>(Activations::exact);
  check_bits<q8>(Activations::exact);
  check_bits<q4>(Activations::exact);
}

TEST_P(NarrowWeights, ComeBackAsTheirFormatRoundsThem) {
  const auto check = [](auto format) {
    using W = decltype(format);
    const auto weight = random_matrix<float>(70, 45, 5);
    const auto native = backend();
    const auto matrix = packed<W>(native, weight);
    HostMatrix<float> stored(70, 45), embedded(2, 45);
    native.download_rows(matrix, 0, stored.view());
    const std::vector<std::int32_t> tokens{69, 3};
    native.embed(support::ids(tokens), matrix, embedded.view());
    std::vector<typename Format<W>::Block> blocks(blocks_in<W>(45));
    for (std::size_t i = 0; i < 70; ++i) {
      Format<W>::pack(weight.view().row(i).data(), 45, blocks.data());
      for (std::size_t k = 0; k < 45; ++k) ASSERT_EQ(stored(i, k), Format<W>::template get<float>(blocks.data(), k));
    }
    for (std::size_t k = 0; k < 45; ++k) {
      EXPECT_EQ(embedded(0, k), stored(69, k));
      EXPECT_EQ(embedded(1, k), stored(3, k));
    }
  };
  check(bf16());
  check(f16());
  check(q8());
  check(q4());
}

TEST_P(NarrowWeights, KeepWhatIsNotFiniteAndWhatIsTiny) {
  const auto check = [](auto format) {
    using W = decltype(format);
    const auto native = backend();
    auto x = random_matrix<float>(20, 64, 6);
    x.view()(3, 40) = std::numeric_limits<float>::quiet_NaN();
    x.view()(5, 2) = std::numeric_limits<float>::infinity();
    for (std::size_t k = 0; k < 64; ++k) x.view()(7, k) = 0;
    for (std::size_t k = 0; k < 64; ++k) x.view()(8, k) = 1e-40F;  // subnormal
    HostMatrix<float> y(20, 33);
    native.matmul(x.view(), packed<W>(native, random_matrix<float>(33, 64, 7)), y.view());
    for (std::size_t i = 0; i < 20; ++i) {
      for (std::size_t j = 0; j < 33; ++j) {
        if (i == 3 || i == 5) {
          EXPECT_FALSE(std::isfinite(y(i, j)));
        } else {
          EXPECT_TRUE(std::isfinite(y(i, j)));
        }
        if (i == 7) {
          EXPECT_EQ(y(i, j), 0.0F);
        } else if (i == 8) {
          EXPECT_LT(std::abs(y(i, j)), 1e-36F);
        }
      }
    }
  };
  check(bf16());
  check(f16());
  check(q8());
  check(q4());
}

}  // namespace narrow_test
