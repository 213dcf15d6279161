//! End-to-end suites over real containers and real servers, their harness, and the benches.
