// Compiles the code that opens, reads and converts files, once for a whole program. Include this header in one source
// file, and compile all others with -DMINIMAMBA_COMPILED_FILES: each then compiles seconds faster. All of them need the
// same -m flags. With CMake, link minimamba::files, which does both.
#ifndef MINIMAMBA_FILES_HPP
#define MINIMAMBA_FILES_HPP

#undef MINIMAMBA_COMPILED_FILES  // this file compiles them, even if the flag is set for all files

#include "minimamba/io/commit_together.hpp"
#include "minimamba/io/gguf_writer.hpp"
#include "minimamba/io/json_parser.hpp"
#include "minimamba/io/open_checkpoint.hpp"
#include "minimamba/io/save.hpp"
#include "minimamba/io/tensors.hpp"
#include "minimamba/text/tokenizer_json.hpp"

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
template std::size_t detail::add_safetensors(ByteSource, TensorSet&);
template void detail::read_safetensors_texts(const ByteSource&, std::map<std::string, std::string>&);
template GgufMetadata detail::read_gguf_header(ByteSource, TensorSet&);
template void detail::CommitTogether::commit(std::span<AtomicFile* const>);
template void AtomicFile::open(bool);
template std::string SafetensorsWriter::lay_out(const std::map<std::string, std::string>&);
template void SafetensorsWriter::write(std::span<const float>, DType);
template void SafetensorsWriter::write(std::span<const double>, DType);
template Tokenizer Tokenizer::load_path(const std::filesystem::path&, const TokenizerOptions&);
template Tokenizer Tokenizer::load_source(const ByteSource&, const TokenizerOptions&);
template Tokenizer Tokenizer::load_metadata(const GgufMetadata&, const std::string&, const TokenizerOptions&);
template void Tokenizer::read(const TokenizerParts&, const TokenizerOptions&);
template std::vector<std::int32_t> Tokenizer::encode_text(std::string_view, const EncodeOptions&) const;
template std::string Tokenizer::decode_ids(std::span<const std::int32_t>) const;
template std::string detail::write_tokenizer_json(const TokenizerParts&);
template TokenizerParts detail::read_tokenizer_text(const ByteSource&);
template TokenizerParts detail::read_gguf_tokenizer(const GgufMetadata&, const std::string&);

}  // namespace minimamba

#endif
