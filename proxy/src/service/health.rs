//! What is remembered of endpoints' health, over all workers and across reloads of a policy.
//!
//! Counting is lock-free: an endpoint has a bucket a second for the last minute, and numbers of failures in a row, all
//! atomics. What changes who may be picked (an ejection, its end, a failed check) is rare, goes through the service's
//! lock, and publishes a new snapshot, so that all workers see one truth. A verdict names the state that it was made on:
//! of two workers that saw the same failures, one ejects.
