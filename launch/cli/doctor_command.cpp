// `thinwire doctor`: what this build can do on this machine, in this environment.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/common/printable.h"
#include "thinwire/common/table.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/launch/cli/commands.h"
#include "thinwire/launch/cli/diagnosis.h"
#include "thinwire/launch/cli/postmortem.h"

namespace thinwire::launch {
namespace {

using Json = nlohmann::ordered_json;

Json json_of(const Diagnosis& found) {
  Json json;
  json["thinwire"] = found.version;
  for (const auto& library : found.libraries) {
    json[library.name] = {{"built", library.built}, {"loaded", library.loaded}};
  }
  json["cuda"]["driver"] = found.cuda_driver;
  json["backends"] = Json::array();
  for (const auto& backend : found.backends) {
    json["backends"].push_back(
        {{"name", backend.name}, {"usable", backend.usable}, {"reason", backend.reason}});
  }
  json["simd"] = {{"target", found.simd_target}, {"targets", found.simd_targets}};
  json["crc32c"] = found.crc32c_hardware ? "hardware" : "table";
  json["codecs"] = Json::array();
  for (const auto& codec : codec_table()) {
    json["codecs"].push_back(
        {{"name", codec.name}, {"parameters", codec.parameters}, {"summary", codec.summary}});
  }
  json["environment"] = Json::array();
  for (const auto& variable : found.variables) {
    json["environment"].push_back({{"name", variable.name},
                                   {"value", variable.value},
                                   {"set", variable.is_set},
                                   {"description", variable.description}});
  }
  json["unknown_variables"] = found.unknown_variables;
  json["launcher"] = {{"name", found.launcher}, {"rank", found.rank}, {"size", found.size}};
  json["warnings"] = found.warnings;
  return json;
}

std::string or_dash(const std::string& text) {
  return text.empty() ? "-" : text;
}

void print_libraries(const Diagnosis& found, std::ostream& out) {
  out << "Libraries\n";
  Table table;
  table.add({"", "built with", "loaded"});
  for (const auto& library : found.libraries) {
    table.add({library.name, or_dash(library.built), or_dash(library.loaded)});
  }
  table.print(out);
  out << "  CUDA driver: " << (found.cuda_driver.empty() ? "none" : found.cuda_driver) << "\n\n";
}

void print_backends(const Diagnosis& found, std::ostream& out) {
  out << "Backends\n";
  Table table;
  for (const auto& backend : found.backends) {
    const std::string remark = backend.reason.empty() ? "" : ": " + backend.reason;
    table.add({backend.name, (backend.usable ? "usable" : "no") + remark});
  }
  table.print(out);
  out << "\n";
}

void print_processor(const Diagnosis& found, std::ostream& out) {
  std::string targets;
  for (const auto& target : found.simd_targets) {
    targets += (targets.empty() ? "" : ", ") + target;
  }
  out << "Processor\n";
  Table table;
  table.add({"SIMD target", found.simd_target + " (of " + targets + ")"});
  table.add({"CRC32C", found.crc32c_hardware ? "hardware" : "table"});
  table.print(out);
  out << "\n";
}

void print_codecs(std::ostream& out) {
  out << "Codecs\n";
  Table table;
  for (const auto& codec : codec_table()) {
    table.add({std::string(codec.name), std::string(codec.summary)});
  }
  table.print(out);
  out << "\n";
}

void print_environment(const Diagnosis& found, std::ostream& out) {
  out << "Environment (* set)\n";
  Table table;
  for (const auto& variable : found.variables) {
    table.add({variable.is_set ? "*" : " ", variable.name, or_dash(variable.value),
               variable.description});
  }
  table.print(out, " ");
  out << "\nLauncher\n  " << found.launcher << ", rank " << found.rank << " of " << found.size
      << "\n";
}

void print(const Diagnosis& found, std::ostream& out) {
  out << "thinwire " << found.version << "\n\n";
  print_libraries(found, out);
  print_backends(found, out);
  print_processor(found, out);
  print_codecs(out);
  print_environment(found, out);
  if (found.warnings.empty()) return;
  out << "\nWarnings\n";
  for (const auto& warning : found.warnings) out << "  " << printable(warning) << "\n";
}

}  // namespace

void add_doctor_command(CLI::App& app) {
  auto* command = app.add_subcommand(
      "doctor",
      "Show versions, backends, SIMD target, codecs and environment variables; or "
      "what happened to a job");
  command->footer(
      "JSON keys: thinwire, torch, mpi, nccl and cuda {built, loaded} (cuda also driver), "
      "backends\n"
      "[{name, usable, reason}], simd {target, targets}, crc32c, codecs [{name, parameters,\n"
      "summary}], environment [{name, value, set, description}], unknown_variables, launcher\n"
      "{name, rank, size}, warnings.");
  const auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Print one JSON object");
  const auto files = std::make_shared<std::vector<std::string>>();
  command
      ->add_option("--postmortem", *files,
                   "Say in words what happened to a job: the files that its ranks wrote where "
                   "THINWIRE_POSTMORTEM names a folder, or that folder")
      ->type_name("FILE...")
      ->excludes("--json");
  command->callback([json, files] {
    if (!files->empty()) {
      std::cout << postmortem({files->begin(), files->end()});
      return;
    }
    const Diagnosis found = diagnose();
    if (*json) {
      std::cout << json_of(found).dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
    } else {
      print(found, std::cout);
    }
  });
}

}  // namespace thinwire::launch
