// What the tests of training share: the kinds of backend they are typed over, and gradients on the host.
#ifndef MINIMAMBA_TESTS_TRAINING_HPP
#define MINIMAMBA_TESTS_TRAINING_HPP

#include <bit>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "minimamba/backend/eigen_training.hpp"
#include "minimamba/backend/native_training.hpp"
#include "minimamba/backend/reference_training.hpp"
#include "minimamba/train/tape.hpp"
#include "minimamba/train/trainer.hpp"
#include "support/support.hpp"
#ifdef MINIMAMBA_TEST_CUDA
#include "support/cuda_training.hpp"
#endif

namespace support {

#ifdef MINIMAMBA_TEST_CUDA  // the same tests, on a card
using TrainingKinds = testing::Types<Kind<float, TestedCudaTraining>, Kind<double, TestedCudaTraining>>;
#elif defined(MINIMAMBA_TEST_FEW_KINDS)
using TrainingKinds = testing::Types<Kind<double, minimamba::ReferenceTraining>, Kind<float, minimamba::EigenTraining>,
                                     Kind<float, minimamba::NativeTraining>>;
#else
using TrainingKinds =
    testing::Types<Kind<float, minimamba::ReferenceTraining>, Kind<double, minimamba::ReferenceTraining>,
                   Kind<float, minimamba::EigenTraining>, Kind<double, minimamba::EigenTraining>,
                   Kind<float, minimamba::NativeTraining>, Kind<double, minimamba::NativeTraining>>;
#endif

template <class Model>
using Parameters = std::map<std::string, HostMatrix<typename Model::ScalarType>>;

/// Every parameter of a module by its name.
template <class Model>
Parameters<Model> parameters_of(const Model& model) {
  Parameters<Model> found;
  minimamba::for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        HostMatrix<typename Model::ScalarType> values(parameter.rows(), parameter.cols());
        parameter.download(model.backend(), 0, values.view());
        found.emplace(std::string(name), std::move(values));
      },
      model);
  return found;
}

/// All numbers of a history as bits, for NaN stands where nothing was validated.
inline std::vector<std::uint64_t> bits_of(const std::vector<minimamba::StepRecord>& history) {
  std::vector<std::uint64_t> bits;
  for (const minimamba::StepRecord& record : history) {
    bits.push_back(static_cast<std::uint64_t>(record.step));
    for (const double x : {record.loss, record.learning_rate, record.gradient_norm, record.validation_loss}) {
      bits.push_back(std::bit_cast<std::uint64_t>(x));
    }
  }
  return bits;
}

/// A cache whose every state is a random number.
template <class Model>
typename Model::Cache random_states(const Model& model, std::size_t batch, std::uint64_t seed) {
  using Scalar = typename Model::ScalarType;
  auto cache = model.make_cache(static_cast<std::int64_t>(batch));
  minimamba::Random random(seed);
  for (std::size_t slot = 0; slot < batch; ++slot) {
    const minimamba::View<Scalar> states = cache.slot(slot);
    std::vector<Scalar> values(states.cols());
    for (Scalar& value : values) value = static_cast<Scalar>(static_cast<float>(0.3 * random.normal()));
    model.backend().template upload<Scalar>(values, states.data());
  }
  return cache;
}

template <class Parameters>
void expect_identical(const Parameters& a, const Parameters& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, values] : a) EXPECT_TRUE(identical(values, b.at(name))) << name;
}

}  // namespace support

#endif
