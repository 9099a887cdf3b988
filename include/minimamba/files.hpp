// Compiles what opens and converts files for all programs that link the file that includes this: one source file of a
// project, whose other files are compiled with -DMINIMAMBA_COMPILED_FILES and then take seconds less each. All of them
// need the same -m flags. With CMake, link minimamba::files, which does both.
#ifndef MINIMAMBA_FILES_HPP
#define MINIMAMBA_FILES_HPP

#undef MINIMAMBA_COMPILED_FILES  // here they are compiled, whatever the flags

#include "minimamba/io/gguf_writer.hpp"
#include "minimamba/io/json_parser.hpp"
#include "minimamba/io/open_checkpoint.hpp"
#include "minimamba/io/save.hpp"
#include "minimamba/io/tensors.hpp"

namespace minimamba {

template void detail::parse_json(const ByteSource&, std::uint64_t, std::uint64_t, const JsonLimits&,
                                 detail::JsonHandler&);
template Checkpoint detail::open_files(const std::filesystem::path&);
template Checkpoint detail::open_bytes(ByteSource, const ByteSource&);
template void TensorSet::read(const StoredTensor&, std::uint64_t, std::span<float>) const;
template void TensorSet::read(const StoredTensor&, std::uint64_t, std::span<double>) const;
template void detail::convert_to_folder(const Checkpoint&, const std::filesystem::path&, SaveOptions);
template void detail::convert_to_gguf(const Checkpoint&, const std::filesystem::path&, const SaveOptions&,
                                      const GgufMetadata&);

}  // namespace minimamba

#endif
