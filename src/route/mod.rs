//! Changes become events. Pure.
