// The groups of kernels that are loaded on a card.
#ifndef MINIMAMBA_BACKEND_CUDA_LOADED_KERNELS_HPP
#define MINIMAMBA_BACKEND_CUDA_LOADED_KERNELS_HPP

#include <array>
#include <cassert>
#include <cstddef>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda/driver.hpp"
#include "minimamba/backend/cuda/kernel_code.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

class LoadedKernels {
 public:
  explicit LoadedKernels(const Driver& driver) : driver_(driver) {}
  LoadedKernels(const LoadedKernels&) = delete;
  LoadedKernels& operator=(const LoadedKernels&) = delete;

  struct Request {
    Program program;
    std::span<const char* const> kernels;  // their names
    int capability;                        // of the card, and its name
    const std::string& card;
    const CudaKernelOptions& options;
    bool may_lack;  // code that has none of these kernels will do
  };
  /// Loads a program that is not loaded yet: from the cache, or compiled. Throws CudaError. Threads wait for one
  /// another only where they load the same program. make_current() returns what keeps the card's context current;
  /// shared_of(kernel) is the dynamic shared memory of a kernel in bytes.
  template <class MakeCurrent, class Shared>
  void load(const Request& wanted, MakeCurrent&& make_current, Shared&& shared_of) {
    Loaded& loaded = of(wanted.program);
    const std::lock_guard lock(loaded.mutex);
    if (loaded.module != nullptr) return;
    [[maybe_unused]] const auto current = make_current();
    Handle module = nullptr;
    const std::string code =
        code_of(wanted.program, wanted.capability, wanted.card, wanted.options,
                [&](const std::string& found) { return driver_.load_module(&module, found.c_str()) == 0; });
    if (module == nullptr) driver_.check(driver_.load_module(&module, code.c_str()), "loading the kernels");
    std::vector<Handle> functions(wanted.kernels.size());
    for (std::size_t i = 0; i < functions.size(); ++i) {
      const int error = find(functions[i], module, wanted.kernels[i], static_cast<int>(shared_of(i)));
      if (error != 0 && wanted.may_lack) {
        functions.clear();
        break;
      }
      if (error != 0) {
        driver_.unload_module(module);
        driver_.check(error, wanted.kernels[i]);
      }
    }
    loaded.functions = std::move(functions);
    loaded.module = module;
  }
  /// Whether load has ended for a program.
  bool is_loaded(Program program) {
    Loaded& loaded = of(program);
    const std::lock_guard lock(loaded.mutex);
    return loaded.module != nullptr;
  }
  /// Whether the kernels of a program are there.
  bool has(Program program) const { return !of(program).functions.empty(); }
  Handle function(Program program, std::size_t kernel) const {
    assert(kernel < of(program).functions.size());
    return of(program).functions[kernel];
  }
  /// With the card's context current.
  void unload() {
    for (Loaded& program : programs_) {
      if (program.module != nullptr) driver_.unload_module(std::exchange(program.module, nullptr));
    }
  }

 private:
  struct Loaded {
    std::mutex mutex;  // for whoever loads it
    Handle module = nullptr;
    std::vector<Handle> functions;
  };
  Loaded& of(Program program) { return programs_[static_cast<std::size_t>(program)]; }
  const Loaded& of(Program program) const { return programs_[static_cast<std::size_t>(program)]; }

  /// Returns the number of an error, or 0.
  int find(Handle& function, Handle module, const char* name, int shared) const {
    constexpr int max_dynamic_shared_memory = 8, share_of_shared_memory = 9;  // and the rest is cache
    int error = driver_.get_function(&function, module, name);
    if (error == 0 && shared > 0) {
      error = driver_.set_function_attribute(function, max_dynamic_shared_memory, shared);
      if (error == 0) error = driver_.set_function_attribute(function, share_of_shared_memory, 100);
    }
    return error;
  }

  const Driver& driver_;
  std::array<Loaded, program_count> programs_;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
