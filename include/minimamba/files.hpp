// Compiles the code that opens, reads and converts files, once for a whole program. Include this header in one source
// file, and compile all others with -DMINIMAMBA_COMPILED_FILES: each then compiles seconds faster. All of them need the
// same -m flags. With CMake, link minimamba::files, which does both.
#ifndef MINIMAMBA_FILES_HPP
#define MINIMAMBA_FILES_HPP

#undef MINIMAMBA_COMPILED_FILES  // this file compiles them, even if the flag is set for all files

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
