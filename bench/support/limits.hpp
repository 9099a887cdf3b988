// What the machine allows, measured in the same run as the code it is held against: the limits drift by 10 to 30 %.
#ifndef MINIMAMBA_BENCH_LIMITS_HPP
#define MINIMAMBA_BENCH_LIMITS_HPP

#include <chrono>
#include <cstddef>
#include <functional>
#include <string>

namespace minimamba_bench {

template <class Call>
double seconds_of(Call&& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

enum class Unit { operations, bytes };

/// A rate of the machine. Each sample() takes some milliseconds; rate() is the average over all samples so far.
class Limit {
 public:
  struct Sample {
    double amount = 0;   // operations or bytes
    double seconds = 0;  // in which they were done
  };

  Limit(std::string name, Unit unit, std::function<Sample()> take)
      : name_(std::move(name)), unit_(unit), take_(std::move(take)) {}

  double sample() {  // the seconds that it counted
    const Sample taken = take_();
    sum_.amount += taken.amount;
    sum_.seconds += taken.seconds;
    return taken.seconds;
  }
  const std::string& name() const { return name_; }
  Unit unit() const { return unit_; }
  double rate() const { return sum_.seconds > 0 ? sum_.amount / sum_.seconds : 0; }  // a second

 private:
  std::string name_;
  Unit unit_;
  std::function<Sample()> take_;
  Sample sum_;
};

/// Products and sums in registers alone, on `threads` threads, by the widest instructions that this machine has,
/// whatever the program is compiled for.
enum class Arithmetic { f32_fma, bf16_dot, int8_dot };
bool available(Arithmetic arithmetic);
Limit arithmetic_limit(Arithmetic arithmetic, int threads);

/// Reading `bytes` over and over: of the cache that holds so many, or of DRAM when that is dram_bytes() or more.
Limit read_limit(std::size_t bytes, int threads);
/// 512 MB, or half of the free memory if that is less.
std::size_t dram_bytes();

/// Eigen's product [tokens, in] x [out, in]^T, its outputs divided over the threads as EigenBackend divides them.
Limit sgemm_limit(std::size_t tokens, std::size_t in, std::size_t out, int threads);

/// The instruction set that this program is compiled for, and what the machine has that matters here.
std::string compiled_for();
std::string machine_has();

}  // namespace minimamba_bench

#endif
