//! The networks against recorded vectors, and against themselves.

mod block_orders;
mod initialisation;
mod mohawk;
mod student;
mod teacher;
