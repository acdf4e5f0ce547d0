//! The engine driven by a small port and a small disk, with one core or several.

mod changes;
mod cores;
mod data;
mod device;
mod management;
mod stress;
mod world;
