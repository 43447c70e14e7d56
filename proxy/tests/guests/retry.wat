;; A retry policy that always gives up: a guest of this contract, but no balancer.
(module
  (memory (export "memory") 1)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
  (func (export "configure") (param i32 i32 i64) (result i32) (i32.const 0))
  (func (export "decide") (result i32) (i32.const 0)))
