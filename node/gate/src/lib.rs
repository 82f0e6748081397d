//! The output gate (specs/gate.md): what may leave a sealed room, and in which form. Pure functions on
//! bytes and measured numbers.
