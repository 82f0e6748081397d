//! What must hold whatever the disk does, and how the pieces work together on a good one.

mod crash;
mod live;
