// A backend without one of the functions of the concept, in a program that uses it: compiled with -DWITHOUT_<function>,
// it must be refused in few words that name the function; with none, it must pass. With -DLOADED the program loads its
// model.
#include <minimamba/backend/host_memory.hpp>
#include <minimamba/nn/mamba.hpp>
#ifdef LOADED
#include <minimamba/io/load.hpp>
#endif

#include <vector>

using namespace minimamba;

template <class Number>
struct Port {
  using Scalar = Number;
  template <class T>
  using Buffer = HostBuffer<T>;
  template <WeightFormat W>
  using Matrix = HostMatrix<W>;

#ifndef WITHOUT_name
  const char* name() const;
#endif
#ifndef WITHOUT_threads
  int threads() const;
#endif
#ifndef WITHOUT_allocate
  template <class T>
  Buffer<T> allocate(std::size_t count) const;
#endif
#ifndef WITHOUT_upload
  template <class T>
  void upload(std::span<const T> host, T* there) const;
#endif
#ifndef WITHOUT_download
  template <class T>
  void download(const T* there, std::span<T> host) const;
#endif
#ifndef WITHOUT_fill
  void fill(View<Scalar> y, Scalar value) const;
#endif
#ifndef WITHOUT_copy
  void copy(View<const Scalar> x, View<Scalar> y) const;
#endif
#ifndef WITHOUT_gather_rows
  void gather_rows(View<const Scalar> x, std::span<const std::size_t> rows, View<Scalar> y) const;
#endif
#ifndef WITHOUT_reorder_rows
  void reorder_rows(View<Scalar> y, std::span<const std::size_t> rows) const;
#endif
#ifndef WITHOUT_make_matrix
  template <WeightFormat W>
  Matrix<W> make_matrix(std::size_t rows, std::size_t cols) const;
#endif
#ifndef WITHOUT_upload_rows
  template <WeightFormat W>
  void upload_rows(View<const Scalar> host, std::size_t first, HostMatrix<W>& matrix) const;
#endif
#ifndef WITHOUT_download_rows
  template <WeightFormat W>
  void download_rows(const HostMatrix<W>& matrix, std::size_t first, View<Scalar> host) const;
#endif
#ifndef WITHOUT_embed
  template <WeightFormat W>
  void embed(View<const std::int32_t> tokens, const HostMatrix<W>& weight, View<Scalar> y) const;
#endif
#ifndef WITHOUT_rms_norm
  void rms_norm(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<Scalar> y) const;
#endif
#ifndef WITHOUT_matmul
  template <WeightFormat W>
  void matmul(View<const Scalar> x, const HostMatrix<W>& weight, View<Scalar> y) const;
#endif
#ifndef WITHOUT_causal_conv1d
  void causal_conv1d(const Conv1dArguments<Scalar>& arguments) const;
#endif
#ifndef WITHOUT_selective_scan
  void selective_scan(const ScanArguments<Scalar>& arguments) const;
#endif
#ifndef WITHOUT_add
  void add(View<const Scalar> x, View<Scalar> y) const;
#endif
#ifndef WITHOUT_negative_exp
  void negative_exp(View<const Scalar> x, View<Scalar> y) const;
#endif
};

int main() {
#ifdef LOADED
  const auto model = load<Mamba<float, Port>>("model");
#else
  const Mamba<float, Port> model(MambaConfig{.d_model = 64, .n_layer = 2, .vocab_size = 256});
#endif
  auto cache = model.make_cache();
  const auto logits = model.forward(std::vector<std::int32_t>{1, 2, 3}, cache);
  return logits.rows() == 3 ? 0 : 1;
}
