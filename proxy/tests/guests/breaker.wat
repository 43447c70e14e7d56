;; A circuit breaker that traps whenever a response is judged. The probe before it comes into force is about connections
;; that were refused, and passes.
(module
  (import "heddle:policy/outcome@0.1.0" "status" (func $status (param $to i32)))

  (memory (export "memory") 1)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
  (func (export "configure") (param i32 i32 i64) (result i32) (i32.const 0))
  (func (export "update") (param i32 i32 i32 i32))
  (func (export "judge") (param $slot i32)
    (call $status (i32.const 16))
    (if (i32.load8_u (i32.const 16)) (then (unreachable))))
  (func (export "tick")))
