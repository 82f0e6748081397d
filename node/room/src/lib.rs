//! The sealed room (specs/room.md): a process that reads sovereign data and can tell nobody but the pipe
//! it was given. It probes what it claims and reports only what it has verified.
