#include <torch/csrc/utils/pybind.h>

#include <deque>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/merge.h"
#include "thinwire/compressors/peft/pack.h"
#include "thinwire/python/bindings/bindings.h"

namespace py = pybind11;

namespace thinwire::python {
namespace {

namespace fs = std::filesystem;
using Named = std::vector<std::pair<std::string, at::Tensor>>;

constexpr std::pair<const char*, at::ScalarType> kTypes[] = {
    {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf},  {"BF16", at::kBFloat16},
    {"I64", at::kLong},   {"I32", at::kInt},   {"I16", at::kShort}, {"I8", at::kChar},
    {"U8", at::kByte},    {"BOOL", at::kBool}};

std::string type_name(const std::string& tensor, at::ScalarType type) {
  for (const auto& [name, known] : kTypes)
    if (known == type) return name;
  throw InvalidArgument(concat("tensor '", tensor, "' is of type ", toString(type),
                               ", which safetensors files do not hold"));
}

void write_tensors(const std::string& path, const Named& tensors,
                   const std::map<std::string, std::string>& metadata, bool overwrite) {
  std::vector<peft::TensorInfo> infos;
  for (const auto& [name, tensor] : tensors)
    infos.push_back({name, type_name(name, tensor.scalar_type()), tensor.sizes().vec()});
  peft::SafetensorsWriter writer(path, infos, metadata, overwrite);
  for (const auto& item : tensors) {
    const at::Tensor values = item.second.detach().cpu().contiguous();
    writer.write(std::as_bytes(
        std::span(static_cast<const char*>(values.const_data_ptr()), values.nbytes())));
  }
  writer.commit();
}

std::map<std::string, at::Tensor> read_tensors(const std::string& path) {
  const peft::SafetensorsFile file{fs::path(path)};
  std::map<std::string, at::Tensor> tensors;
  for (const peft::TensorInfo& info : file.tensors()) {
    for (const auto& [name, type] : kTypes) {
      if (info.dtype != name) continue;
      at::Tensor tensor = at::empty(info.shape, type);
      const auto bytes = file.bytes(info.name);
      std::copy(bytes.begin(), bytes.end(), static_cast<std::byte*>(tensor.mutable_data_ptr()));
      tensors.emplace(info.name, tensor);
    }
    if (!tensors.contains(info.name))
      throw FileError(concat(path, ": tensor '", info.name, "' is of type ", info.dtype,
                             ", which has no torch type here"));
  }
  return tensors;
}

struct Opened {
  explicit Opened(const std::vector<std::string>& paths) {
    for (const auto& path : paths) pointers.push_back(&files.emplace_back(fs::path(path)));
  }
  std::deque<peft::PackedFile> files;
  std::vector<const peft::PackedFile*> pointers;
};

peft::PackResult pack(const std::string& source, const std::string& out, double density,
                      const std::string& scale, const std::string& granularity,
                      const std::string& base, bool base_one, const std::string& parent,
                      std::optional<std::uint64_t> target_bytes, std::optional<double> target_error,
                      bool overwrite) {
  peft::PackOptions options;
  options.density = density;
  options.scale = peft::ScaleRule::parse(scale);
  if (!granularity.empty()) options.granularity = peft::parse_granularity(granularity);
  options.target_bytes = target_bytes;
  options.target_error = target_error;
  options.overwrite = overwrite;
  if (!parent.empty()) options.parent_id = peft::PackedFile(fs::path(parent)).manifest().id;
  const bool directory = fs::is_directory(source);
  check(!directory || (base.empty() && !base_one),
        "the base of an adapter is known from its adapter_config.json; base is for files");
  const peft::DeltaSource deltas = directory      ? peft::open_adapter_dir(source)
                                   : base.empty() ? peft::open_tensors(source, base_one ? 1 : 0)
                                                  : peft::open_pair(source, base);
  return peft::pack(deltas, out, options);
}

py::dict as_dict(const peft::PackResult& result) {
  py::dict made;
  made["density"] = result.density;
  made["relative_error"] = result.relative_error;
  made["numel"] = result.numel;
  made["kept"] = result.kept;
  made["file_bytes"] = result.file_bytes;
  made["id"] = result.id;
  made["warnings"] = result.warnings;
  return made;
}

}  // namespace

void bind_peft(py::module_& module) {
  py::module_ peft = module.def_submodule("peft");
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  peft.def("pack",
           [](const std::string& source, const std::string& out, double density,
              const std::string& scale, const std::string& granularity, const std::string& base,
              bool base_one, const std::string& parent, std::optional<std::uint64_t> target_bytes,
              std::optional<double> target_error, bool overwrite) {
             peft::PackResult result;
             {
               const py::gil_scoped_release release;
               result = pack(source, out, density, scale, granularity, base, base_one, parent,
                             target_bytes, target_error, overwrite);
             }
             return as_dict(result);
           });
  peft.def(
      "unpack",
      [](const std::string& file, const std::string& directory, bool overwrite) {
        peft::unpack_to_dir(peft::PackedFile(fs::path(file)), directory, overwrite);
      },
      no_gil);
  peft.def(
      "apply",
      [](const std::string& base, const std::vector<std::string>& chain, const std::string& out,
         bool overwrite) { peft::apply_packed(base, Opened(chain).pointers, out, overwrite); },
      no_gil);
  peft.def(
      "merge",
      [](const std::string& method, const std::vector<std::string>& files,
         const std::vector<float>& weights, const std::string& out, bool overwrite) {
        peft::merge_packed(peft::parse_merge_method(method), Opened(files).pointers, weights, out,
                           overwrite);
      },
      no_gil);
  peft.def(
      "similarity",
      [](const std::vector<std::string>& files) {
        return peft::cosine_matrix(Opened(files).pointers);
      },
      no_gil);
  peft.def(
      "manifest",
      [](const std::string& file) {
        return peft::manifest_json(peft::PackedFile(fs::path(file)).manifest());
      },
      no_gil);
  peft.def("write_tensors", &write_tensors, no_gil);
  peft.def("read_tensors", &read_tensors, no_gil);
}

}  // namespace thinwire::python
