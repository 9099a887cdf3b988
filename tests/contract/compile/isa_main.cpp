// Runs the units that it is linked with, -DUNITS="USE(plain) USE(avx2)", and prints for each of them and each backend
// a digest of the bits of the logits. Exits 77 where the machine cannot run a unit, 1 where two units disagree.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string_view>

#include "isa_results.hpp"

#define USE(unit) Results unit();
UNITS
#undef USE

namespace {

bool can_run(std::string_view unit) {
  if (unit == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (unit == "avx512") return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  return true;
}

void print(const char* unit, const char* backend, const std::vector<float>& logits) {
  std::uint64_t digest = 14695981039346656037U;
  for (const float logit : logits) digest = (digest ^ std::bit_cast<std::uint32_t>(logit)) * 1099511628211U;
  std::printf("%s %s %zu %016llx\n", unit, backend, logits.size(), static_cast<unsigned long long>(digest));
}

/// Largest difference, in parts of the largest magnitude; infinite where there are none to compare, or NaN.
double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0, magnitude = 0;
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) {
    const double off = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(off <= largest)) largest = off;
    magnitude = std::fmax(magnitude, std::abs(static_cast<double>(a[i])));
  }
  return a.size() == b.size() && magnitude > 0 ? largest / magnitude : HUGE_VAL;
}

}  // namespace

int main() {
#define USE(unit) \
  if (!can_run(#unit)) return 77;
  UNITS
#undef USE
  std::vector<Results> all;
#define USE(unit)                                  \
  all.push_back(unit());                           \
  print(#unit, "reference", all.back().reference); \
  print(#unit, "native", all.back().native);       \
  if (all.back().eigen_type.find("isa_") == std::string::npos) return 1;
  UNITS
#undef USE
  // Contraction may round a product or not, a few times a layer; the sums are carried in double.
  constexpr double tolerance = 64 * 0x1p-23;
  for (std::size_t i = 1; i < all.size(); ++i) {
    const double reference = difference(all[0].reference, all[i].reference);
    const double native = difference(all[0].native, all[i].native);
    std::fprintf(stderr, "unit 0 and unit %zu: reference differs by %g, native by %g\n", i, reference, native);
    if (!(reference <= tolerance) || !(native <= tolerance)) return 1;
    if (all[0].eigen_type == all[i].eigen_type) return 1;
  }
  return 0;
}
