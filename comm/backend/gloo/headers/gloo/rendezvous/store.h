// Note [Gloo headers]
//
// LibTorch contains Gloo, compiled, but ships none of its headers, and ProcessGroupGloo.hpp
// includes five of them. The files in this folder declare just what that header names. This is
// sound because everything of Gloo is used through pointers to objects that LibTorch itself
// creates; it requires that no file of ours
//   - creates a ProcessGroupGloo::GlooStore (its table of virtual functions would be ours, and
//     shorter than the one LibTorch was compiled with),
//   - calls a member of a gloo class that is virtual or that LibTorch does not export
//     (Context::closeConnections() is neither), or
//   - includes ProcessGroupGloo.hpp anywhere but in comm/backend/gloo/backend.cpp.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace gloo::rendezvous {

class Store {
 public:
  virtual ~Store();
  virtual void set(const std::string& key, const std::vector<char>& data) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys,
                    const std::chrono::milliseconds& timeout) = 0;
};

}  // namespace gloo::rendezvous
