//! The edge towards PostgreSQL.
