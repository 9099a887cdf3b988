// SessionStore: the states of conversations by name, in memory and in a folder.
//
//   minimamba::SessionStore store(model, {.max_bytes = std::size_t{1} << 30, .folder = "sessions"});
//   store.put("alice", result.state, {{"unread", ...}});
//   if (auto session = store.get("alice")) scheduler.submit({.prompt = ..., .start = session->state});
#ifndef MINIMAMBA_IO_SESSION_STORE_HPP
#define MINIMAMBA_IO_SESSION_STORE_HPP

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "minimamba/core/error.hpp"
#include "minimamba/io/state.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct SessionStoreOptions {
  std::size_t max_bytes = std::size_t{1} << 30;  // of the states in memory
  std::filesystem::path folder = {};             // for those that do not fit; empty: they are dropped
};

/// Keeps sessions in memory as long as they fit. Those that were not used for the longest time are written to files of
/// the folder (name.state: see save_state), from which any later store of the same model reads them, and are removed
/// from memory. Any thread may use it.
template <class Model>
class SessionStore {
 public:
  using Cache = typename Model::Cache;

  /// A state, which may be shared with others, and what the program keeps with it.
  struct Session {
    std::shared_ptr<const Cache> state;
    StateSections sections;
  };

  /// The model must outlive it. Creates the folder. Throws FileError.
  explicit SessionStore(const Model& model, SessionStoreOptions options = {})
      : model_(model), options_(std::move(options)) {
    if (options_.folder.empty()) return;
    std::error_code error;
    std::filesystem::create_directories(options_.folder, error);
    if (error) throw FileError(options_.folder.string(), "cannot be created: " + error.message());
  }
  explicit SessionStore(const Model&&, SessionStoreOptions = {}) = delete;

  /// Keeps a session under a name, in place of an older one. Throws ArgumentError for a name that is not 1 to 64
  /// letters, digits, '-' or '_', for no state or one of another model, and what save_state throws; then the older one
  /// is still there.
  void put(const std::string& name, Session session) {
    check(name);
    if (session.state == nullptr) throw ArgumentError("session", "a state", "none");
    model_.check({}, *session.state);
    const std::lock_guard lock(mutex_);
    const std::size_t bytes = bytes_of(name, session);
    if (bytes > options_.max_bytes) {  // straight to the folder
      write(name, session);
      forget(name);
      return;
    }
    make_room(bytes, name);
    forget(name);
    sessions_.push_front({name, std::move(session), bytes});
    places_[name] = sessions_.begin();
    bytes_ += bytes;
  }

  /// The session of that name, from memory or the folder; none if there is no such. Throws ArgumentError as put(), and
  /// what load_state throws.
  std::optional<Session> get(const std::string& name) {
    check(name);
    const std::lock_guard lock(mutex_);
    if (const auto place = places_.find(name); place != places_.end()) {
      sessions_.splice(sessions_.begin(), sessions_, place->second);
      return sessions_.front().session;
    }
    if (options_.folder.empty()) return std::nullopt;
    std::error_code error;
    if (!std::filesystem::exists(file(name), error)) {
      if (error) throw FileError(file(name).string(), "cannot be read: " + error.message());
      return std::nullopt;
    }
    auto saved = load_state(file(name), model_);
    return Session{std::make_shared<const Cache>(std::move(saved.cache)), std::move(saved.sections)};
  }

  /// Removes a session, and its file. Returns whether there was one.
  bool erase(const std::string& name) {
    check(name);
    const std::lock_guard lock(mutex_);
    const bool in_memory = forget(name);
    std::error_code error;
    const bool in_folder = !options_.folder.empty() && std::filesystem::remove(file(name), error);
    if (error) throw FileError(file(name).string(), "cannot be removed: " + error.message());
    return in_memory || in_folder;
  }

  /// Writes all sessions in memory to the folder, if there is one: before the program ends. Throws what save_state
  /// throws.
  void flush() {
    const std::lock_guard lock(mutex_);
    if (options_.folder.empty()) return;
    while (!sessions_.empty()) swap_out(std::prev(sessions_.end()));
  }

  std::size_t size() const {  // in memory, as the next
    const std::lock_guard lock(mutex_);
    return sessions_.size();
  }
  std::size_t bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  struct Entry {
    std::string name;
    Session session;
    std::size_t bytes;
  };
  using Entries = std::list<Entry>;

  static void check(std::string_view name) {
    const auto fits = [](char x) {
      return (x >= 'a' && x <= 'z') || (x >= 'A' && x <= 'Z') || (x >= '0' && x <= '9') || x == '-' || x == '_';
    };
    if (!name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), fits)) return;
    throw ArgumentError("session", "1 to 64 letters, digits, - or _", "\"" + printable(name) + "\"");
  }
  static std::size_t bytes_of(const std::string& name, const Session& session) {
    std::size_t bytes = session.state->state_bytes() + sizeof(Entry) + 2 * name.size();
    for (const auto& [key, contents] : session.sections) bytes += key.size() + contents.size();
    return bytes;
  }
  std::filesystem::path file(const std::string& name) const { return options_.folder / (name + ".state"); }
  void write(const std::string& name, const Session& session) const {
    if (!options_.folder.empty()) save_state(model_, *session.state, file(name), session.sections);
  }

  /// Removes the sessions that were used longest ago, but not the one of this name, until so many bytes fit.
  void make_room(std::size_t bytes, const std::string& name) {
    const auto own = places_.find(name);
    const std::size_t freed = own == places_.end() ? 0 : own->second->bytes;
    for (auto last = sessions_.end(); bytes_ - freed + bytes > options_.max_bytes && last != sessions_.begin();) {
      --last;
      if (last->name != name) last = swap_out(last);
    }
  }
  typename Entries::iterator swap_out(typename Entries::iterator entry) {
    write(entry->name, entry->session);
    bytes_ -= entry->bytes;
    places_.erase(entry->name);
    return sessions_.erase(entry);
  }
  bool forget(const std::string& name) {
    const auto place = places_.find(name);
    if (place == places_.end()) return false;
    bytes_ -= place->second->bytes;
    sessions_.erase(place->second);
    places_.erase(place);
    return true;
  }

  const Model& model_;
  SessionStoreOptions options_;
  mutable std::mutex mutex_;
  Entries sessions_;  // the one used last first
  std::map<std::string, typename Entries::iterator> places_;
  std::size_t bytes_ = 0;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
