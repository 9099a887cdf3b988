// What `forecast` makes of a series: the rows that its model reads and what it predicts, one value at a time; how they
// are scaled; naive forecasts to compare with; and a picture.
#ifndef MINIMAMBA_EXAMPLES_FORECASTING_HPP
#define MINIMAMBA_EXAMPLES_FORECASTING_HPP

#include <minimamba/io.hpp>
#include <minimamba/train/csv.hpp>
#include <minimamba/train/sequence_trainer.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "report.hpp"

namespace forecasting {

/// How values become inputs. All of it is saved with the model, as forecast.json.
struct Scaling {
  std::int64_t horizon = 1;          // H, steps ahead that are predicted
  std::int64_t period = 0;           // of a season, in steps; 0: none
  bool level = true;                 // whether the model sees the level of the series, or only its changes
  double mean = 0, deviation = 1;    // of the values to train on
  double step = 1, ahead = 1;        // standard deviation of the change in one step, and in up to H steps
  double validation_fraction = 0.2;  // of the series, its end, that training did not see

  std::size_t columns() const { return static_cast<std::size_t>((level ? 1 : 0) + 1 + (period > 0 ? horizon : 0)); }
};
inline constexpr double largest_scale = 1e300;  // of mean, deviation, step and ahead

/// The values of a series, in memory or in a CSV file that may be larger.
class Values {
 public:
  explicit Values(std::vector<double> values) : values_(std::move(values)) {}
  explicit Values(minimamba::CsvRows file) : file_(std::make_shared<const minimamba::CsvRows>(std::move(file))) {}

  std::size_t size() const { return file_ ? file_->rows() : values_.size(); }
  /// `count` values from number `first` on, or fewer at the end.
  std::vector<double> part(std::size_t first, std::size_t count) const {
    std::vector<double> part(std::min(count, size() - std::min(first, size())));
    if (file_) {
      file_->read(std::min(first, size()), part);
    } else {
      std::copy_n(values_.begin() + static_cast<std::ptrdiff_t>(std::min(first, size())), part.size(), part.begin());
    }
    return part;
  }
  std::uint64_t fingerprint() const {
    if (file_) return file_->fingerprint();
    minimamba::detail::Fnv1a hash;
    for (const double value : values_) hash.add(std::bit_cast<std::uint64_t>(value));
    return hash.value();
  }

 private:
  std::vector<double> values_;
  std::shared_ptr<const minimamba::CsvRows> file_;  // instead of values_
};

/// Calls body(value, the values that follow it, at most `ahead` of them) for each of the first `count` values; none of
/// those that follow comes after them.
template <class Body>
void for_each_value(const Values& values, std::size_t count, std::size_t ahead, Body&& body) {
  constexpr std::size_t at_once = 4096;
  for (std::size_t first = 0; first < count; first += at_once) {
    const std::vector<double> part = values.part(first, std::min(at_once + ahead, count - first));
    for (std::size_t i = 0; i < std::min(at_once, part.size()); ++i) {
      body(part[i], std::span(part).subspan(i + 1, std::min(ahead, part.size() - i - 1)));
    }
  }
}

struct Moments {
  double mean = 0, deviation = 1;  // 1 if all numbers are the same
};
/// each(body) calls body(x) for each number.
template <class Each>
Moments moments_of(Each&& each) {
  double sum = 0, squares = 0, count = 0;
  each([&](double x) { sum += x, ++count; });
  const double mean = sum / count;
  each([&](double x) { squares += (x - mean) * (x - mean); });
  const double deviation = std::sqrt(squares / count);
  return {mean, deviation > 0 ? deviation : 1};
}

/// Measures the values to train on, the first `count`. Throws ArgumentError if they are too large for it.
inline Scaling measured(const Values& values, std::size_t count, Scaling scaling) {
  const auto changes = [&](std::size_t ahead) {
    return [&values, count, ahead](auto&& body) {
      for_each_value(values, count, ahead, [&](double value, std::span<const double> next) {
        for (const double x : next) body(x - value);
      });
    };
  };
  const Moments level = moments_of([&](auto&& body) {
    for_each_value(values, count, 0, [&](double value, std::span<const double>) { body(value); });
  });
  scaling.mean = level.mean;
  scaling.deviation = level.deviation;
  scaling.step = moments_of(changes(1)).deviation;
  scaling.ahead = moments_of(changes(static_cast<std::size_t>(scaling.horizon))).deviation;
  for (const double x : {scaling.mean, scaling.deviation, scaling.step, scaling.ahead}) {
    if (std::abs(x) <= largest_scale) continue;
    throw minimamba::ArgumentError("series", "values whose mean and standard deviation can be computed",
                                   minimamba::number_text(x));
  }
  return scaling;
}

/// The inputs of a stream of values: its level, its last change, and how the season before went on.
class Inputs {
 public:
  explicit Inputs(const Scaling& scaling)
      : scaling_(scaling), last_(static_cast<std::size_t>(std::max<std::int64_t>(scaling.period, 1))) {}

  /// Adds a value; writes the row that the model reads.
  void push(double value, float* row) {
    const double before = count_ == 0 ? value : last_[(count_ - 1) % last_.size()];
    if (scaling_.level) *row++ = static_cast<float>((value - scaling_.mean) / scaling_.deviation);
    *row++ = static_cast<float>((value - before) / scaling_.step);
    const auto P = static_cast<std::size_t>(scaling_.period);
    for (std::size_t h = 1; P > 0 && h <= static_cast<std::size_t>(scaling_.horizon); ++h) {
      // The value at the same place of the season, (h - 1) % P + 1 - P steps from now.
      const bool known = count_ >= P;
      const std::size_t place = (count_ + (h - 1) % P + 1) % last_.size();
      const double then = !known ? value : (h - 1) % P + 1 == P ? value : last_[place];
      *row++ = static_cast<float>((then - value) / scaling_.ahead);
    }
    last_[count_++ % last_.size()] = value;
  }

 private:
  Scaling scaling_;
  std::vector<double> last_;  // the last P values
  std::size_t count_ = 0;
};

/// The rows of a series, computed when they are asked for: a SeriesSource. The first `training` are to train on: their
/// targets do not reach beyond them.
class Rows {
 public:
  Rows(Values values, std::size_t training, const Scaling& scaling)
      : values_(std::move(values)), training_(training), scaling_(scaling) {}

  std::size_t rows() const { return values_.size(); }
  /// Throws ArgumentError, which names the value, for one that is too large for the model to read.
  void check() const {
    Inputs inputs(scaling_);
    std::vector<float> row(scaling_.columns());
    std::size_t number = 0;
    for_each_value(values_, rows(), 0, [&](double value, std::span<const double>) {
      inputs.push(value, row.data());
      ++number;
      if (std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); })) return;
      throw minimamba::ArgumentError("value " + std::to_string(number), "one from which a forecast can be computed",
                                     minimamba::number_text(value));
    });
  }
  void append(std::size_t first, std::size_t count, std::size_t ignored, minimamba::SequenceBatch& batch) const {
    const auto H = static_cast<std::size_t>(scaling_.horizon);
    // What Inputs remembers at the first row: a season, or the last value.
    const std::size_t before = std::min(first, static_cast<std::size_t>(std::max<std::int64_t>(scaling_.period, 1)));
    const std::vector<double> part = values_.part(first - before, before + count + H);
    Inputs inputs(scaling_);
    std::vector<float> row(scaling_.columns());
    batch.lengths.push_back(static_cast<std::int64_t>(count));
    for (std::size_t i = 0; i < before + count; ++i) {
      inputs.push(part[i], row.data());
      if (i < before) continue;
      batch.inputs.insert(batch.inputs.end(), row.begin(), row.end());
      const std::size_t t = first + i - before, end = t < training_ ? training_ : rows();
      for (std::size_t h = 1; h <= H; ++h) {
        const bool known = i - before >= ignored && t + h < end;
        batch.targets.push_back(known ? static_cast<float>((part[i + h] - part[i]) / scaling_.ahead)
                                      : std::numeric_limits<float>::quiet_NaN());
      }
    }
  }
  std::uint64_t fingerprint() const {
    minimamba::detail::Fnv1a hash;
    hash.add(values_.fingerprint());
    hash.add(std::uint64_t{training_});
    for (const std::int64_t x : {scaling_.horizon, scaling_.period, std::int64_t{scaling_.level}}) {
      hash.add(static_cast<std::uint64_t>(x));
    }
    return hash.value();
  }

 private:
  Values values_;
  std::size_t training_;
  Scaling scaling_;
};

inline std::string to_json(const Scaling& scaling) {
  minimamba::JsonWriter json(2);
  json.open('{');
  json.key("horizon").value(scaling.horizon);
  json.key("period").value(scaling.period);
  json.key("level").value(scaling.level);
  json.key("mean").value(scaling.mean);
  json.key("deviation").value(scaling.deviation);
  json.key("step").value(scaling.step);
  json.key("ahead").value(scaling.ahead);
  json.key("validation_fraction").value(scaling.validation_fraction);
  json.close('}');
  return json.text() + "\n";
}

/// Throws FormatError for a file that to_json did not write.
inline Scaling from_json(const minimamba::ByteSource& source) {
  const minimamba::Json json = minimamba::read_json(source);
  const auto number = [&](const char* key, double least) {
    const minimamba::Json* const value = json.find(key);
    const auto found = value == nullptr ? std::nullopt : value->number();
    if (found && std::isfinite(*found) && *found >= least && *found <= largest_scale) return *found;
    throw minimamba::FormatError(source.name() + ": " + key, "a number of at least " + minimamba::number_text(least),
                                 "none");
  };
  const auto count = [&](const char* key, double least) {
    const double found = number(key, least);
    if (found <= 65536 && found == std::floor(found)) return static_cast<std::int64_t>(found);
    throw minimamba::FormatError(source.name() + ": " + key, "an integer up to 65536", minimamba::number_text(found));
  };
  const minimamba::Json* const level = json.find("level");
  if (level == nullptr || level->flag() == nullptr) {
    throw minimamba::FormatError(source.name() + ": level", "true or false", "neither");
  }
  constexpr double tiny = 1e-300;
  const bool knows_fraction = json.find("validation_fraction") != nullptr;  // older files do not
  const double fraction = knows_fraction ? number("validation_fraction", 0) : Scaling().validation_fraction;
  if (fraction > 1) {
    throw minimamba::FormatError(source.name() + ": validation_fraction", "at most 1",
                                 minimamba::number_text(fraction));
  }
  return {.horizon = count("horizon", 1),
          .period = count("period", 0),
          .level = *level->flag(),
          .mean = number("mean", -largest_scale),
          .deviation = number("deviation", tiny),
          .step = number("step", tiny),
          .ahead = number("ahead", tiny),
          .validation_fraction = fraction};
}

/// Mean absolute errors over all forecasts whose value is known, of the medians and of the naive forecasts; and how
/// many of the values lie between the first and the last quantile.
struct Scores {
  double model = 0, last = 0, seasonal = 0, inside = 0;
  std::size_t count = 0;
};

/// Compares the forecasts of a stream with what came. It holds what is needed for that and for the picture, not the
/// whole series.
class Scorer {
 public:
  static constexpr std::size_t shown = 300;  // values in the picture

  /// Forecasts count from row `first` on.
  Scorer(const Scaling& scaling, std::vector<double> quantiles, std::size_t first)
      : H_(static_cast<std::size_t>(scaling.horizon)),
        P_(static_cast<std::size_t>(scaling.period)),
        first_(first),
        quantiles_(std::move(quantiles)) {}

  /// The next value of the series, and the forecasts after it, [H, Q].
  void push(double value, const std::vector<double>& ahead) {
    rows_.push_back({value, ahead});
    if (rows_.size() > std::max(shown, H_ + P_) + H_ + 1) rows_.pop_front();
    const std::size_t t = count_++, Q = quantiles_.size();
    for (std::size_t h = 1; h <= H_ && h <= t && t - h >= first_; ++h) {
      sums_.model += std::abs(at(t - h, h, median()) - value);
      sums_.last += std::abs(this->value(t - h) - value);
      sums_.seasonal += std::abs(seasonal(t, h) - value);
      sums_.inside += value >= at(t - h, h, 0) && value <= at(t - h, h, Q - 1) ? 1 : 0;
      ++sums_.count;
    }
  }
  Scores scores() const {
    Scores mean = sums_;
    for (double* const sum : {&mean.model, &mean.last, &mean.seasonal, &mean.inside}) {
      *sum /= static_cast<double>(std::max<std::size_t>(mean.count, 1));
    }
    return mean;
  }

  std::size_t size() const { return count_; }
  std::size_t horizon() const { return H_; }
  /// The first row in the picture.
  std::size_t begin() const { return std::max(first_ + H_, count_ > shown ? count_ - shown : 0); }
  /// One of the last values, and what was forecast after it for h steps later.
  double value(std::size_t row) const { return rows_[row - (count_ - rows_.size())].value; }
  double at(std::size_t row, std::size_t h, std::size_t k) const {
    return rows_[row - (count_ - rows_.size())].ahead[(h - 1) * quantiles_.size() + k];
  }
  std::size_t last_quantile() const { return quantiles_.size() - 1; }
  /// The index of the quantile that is nearest to the median.
  std::size_t median() const {
    const auto nearer = [](double a, double b) { return std::abs(a - 0.5) < std::abs(b - 0.5); };
    return static_cast<std::size_t>(std::min_element(quantiles_.begin(), quantiles_.end(), nearer) -
                                    quantiles_.begin());
  }

 private:
  struct Row {
    double value;
    std::vector<double> ahead;
  };

  /// The seasonal naive forecast of row t, h steps before: the value whole seasons ago, the last that was known; in the
  /// first season, which has none, the last value.
  double seasonal(std::size_t t, std::size_t h) const {
    const std::size_t back = P_ == 0 ? h : (h + P_ - 1) / P_ * P_;
    return value(t - (back <= t ? back : h));
  }

  std::size_t H_, P_, first_;
  std::vector<double> quantiles_;  // Q
  std::deque<Row> rows_;           // the last ones
  std::size_t count_ = 0;          // of all
  Scores sums_;
};

/// An SVG plot of the end of a series, at most 300 values, with what was forecast for each of them H steps before: the
/// median, and the range from the first to the last quantile.
inline std::string plot_svg(const Scorer& scorer, const std::string& title) {
  const std::size_t H = scorer.horizon(), begin = scorer.begin(), end = scorer.size();
  const std::size_t last = scorer.last_quantile();
  double low = scorer.value(begin), high = scorer.value(begin);
  for (std::size_t t = begin; t < end; ++t) {
    low = std::min({low, scorer.value(t), scorer.at(t - H, H, 0)});
    high = std::max({high, scorer.value(t), scorer.at(t - H, H, last)});
  }
  const double range = high > low ? high - low : 1,
               rows = static_cast<double>(std::max<std::size_t>(end - begin, 2) - 1);
  const auto point = [&](std::size_t t, double value) {
    return program::tenths(70 + 710 * static_cast<double>(t - begin) / rows) + "," +
           program::tenths(40 + 290 * (high - value) / range) + " ";
  };
  std::string truth, median, band;
  for (std::size_t t = begin; t < end; ++t) {
    truth += point(t, scorer.value(t));
    median += point(t, scorer.at(t - H, H, scorer.median()));
    band += point(t, scorer.at(t - H, H, last));
  }
  for (std::size_t t = end; t-- > begin;) band += point(t, scorer.at(t - H, H, 0));
  std::string svg =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 380\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n<rect width=\"800\" height=\"380\" fill=\"white\"/>\n" +
      program::plot_text(425, 22, "middle", title);
  for (int tick = 0; tick <= 4; ++tick) {
    const double height = 330 - 290 * tick / 4.0;
    svg += "<line x1=\"70\" x2=\"780\" y1=\"" + program::tenths(height) + "\" y2=\"" + program::tenths(height) +
           "\" stroke=\"#ddd\"/>\n" +
           program::plot_text(62, height + 4, "end", program::tenths(low + range * tick / 4));
  }
  svg += "<polygon points=\"" + band + "\" fill=\"#1f77b4\" fill-opacity=\"0.25\"/>\n";
  svg += "<polyline points=\"" + median + "\" fill=\"none\" stroke=\"#1f77b4\" stroke-width=\"1.5\"/>\n";
  svg += "<polyline points=\"" + truth + "\" fill=\"none\" stroke=\"black\"/>\n";
  svg += program::plot_text(425, 362, "middle",
                            "rows " + std::to_string(begin) + " to " + std::to_string(end - 1) +
                                "; black: the series; blue: forecast " + std::to_string(H) +
                                " steps before, with its range");
  return svg + "</svg>\n";
}

}  // namespace forecasting

#endif
