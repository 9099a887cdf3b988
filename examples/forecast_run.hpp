// How `forecast` trains a model of any type.
#ifndef MINIMAMBA_EXAMPLES_FORECAST_RUN_HPP
#define MINIMAMBA_EXAMPLES_FORECAST_RUN_HPP

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fitting.hpp"
#include "forecasting.hpp"

namespace forecasting {

struct Training {
  const fitting::Options& fit;
  std::vector<double> quantiles;
  Rows rows;
  Scaling scaling;
};

/// Trains a model of this type. Returns the exit code.
template <class Model>
int train(const typename Model::Backbone::Config& backbone, Training training) {
  const fitting::Options& fit = training.fit;
  const typename Model::Config config{.backbone = backbone,
                                      .columns = static_cast<std::int64_t>(training.scaling.columns()),
                                      .task = minimamba::Task::regression,
                                      .pooling = minimamba::Pooling::none,
                                      .targets = training.scaling.horizon,
                                      .quantiles = training.quantiles};
  minimamba::Trainer trainer(
      Model(config, minimamba::NativeTraining<float>({.threads = fit.threads}), fit.training.seed),
      minimamba::WindowsOf(std::move(training.rows), fit.training.validation_fraction, fit.training.length),
      fit.training);
  const std::string text = to_json(training.scaling);
  return fitting::Fit(trainer, fit,
                      {{"forecast.json", minimamba::ByteSource(std::as_bytes(std::span(text)), "forecast.json")}})
      .run();
}

#ifdef MINIMAMBA_COMPILED_FITS  // which CMakeLists.txt defines: they are compiled in files of their own
extern template int train<fitting::Model<minimamba::detail::S6Files>>(const minimamba::MambaConfig&, Training);
extern template int train<fitting::Model<minimamba::detail::SsdFiles>>(const minimamba::Mamba2Config&, Training);
#endif

}  // namespace forecasting

#endif
