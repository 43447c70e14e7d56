;; A balancer written by hand: rotation over the slots, as many as there are endpoints.
;;
;; The other guests of the tests are made of this one: each function of the contract begins with a mark, its name as a
;; comment, and `support/plugins/guests.rs` puts there what a guest does instead of, or before, what follows.
(module
  (import "heddle:policy/request@0.1.0" "path" (func $path (param $to i32)))
  (import "heddle:policy/request@0.1.0" "header" (func $header (param $name i32) (param $length i32) (param $to i32)))
  (import "heddle:policy/clock@0.1.0" "now-micros" (func $now (result i64)))
  (import "heddle:policy/log@0.1.0" "write" (func $write (param $level i32) (param $text i32) (param $length i32)))

  ;; 0: an empty result, for `configure` and for no slot. 16: the answer of `pick`. 32: a refusal. 48: a path.
  ;; 64: texts. From 4096 on: what the proxy hands over.
  (memory (export "memory") 1)
  (data (i32.const 64) "guests must not be told that")

  (global $free (mut i32) (i32.const 4096))
  (global $endpoints (mut i32) (i32.const 0))
  (global $last (mut i32) (i32.const -1))
  (global $note (mut i32) (i32.const 0))

  (func (export "cabi_realloc") (param i32 i32) (param $align i32) (param $size i32) (result i32)
    (local $place i32)
    (local.set $place
      (i32.and (i32.add (global.get $free) (i32.sub (local.get $align) (i32.const 1)))
               (i32.sub (i32.const 0) (local.get $align))))
    (global.set $free (i32.add (local.get $place) (local.get $size)))
    (block $enough
      (loop $more
        (br_if $enough (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
        (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then (unreachable)))
        (br $more)))
    (local.get $place))

  ;; What the proxy handed over for a call is of no use after it.
  (func $forget (global.set $free (i32.const 4096)))

  ;; Whether a request is decided on whose path begins with `/` and this letter.
  (func $on (param $letter i32) (result i32)
    (call $path (i32.const 48))
    (if (i32.eqz (i32.load8_u (i32.const 48))) (then (return (i32.const 0))))
    (if (i32.lt_u (i32.load (i32.const 56)) (i32.const 2)) (then (return (i32.const 0))))
    (i32.eq (i32.load8_u offset=1 (i32.load (i32.const 52))) (local.get $letter)))

  (func $answer (param $slot i32) (result i32)
    (i32.store8 (i32.const 16) (i32.const 1))
    (i32.store (i32.const 20) (local.get $slot))
    (i32.const 16))

  (func (export "configure") (param $config i32) (param $length i32) (param $seed i64) (result i32)
    (;configure;)
    (call $forget)
    (i32.const 0))

  (func (export "update") (param $removed i32) (param $removals i32) (param $added i32) (param $additions i32)
    (;update;)
    (global.set $endpoints
      (i32.add (i32.sub (global.get $endpoints) (local.get $removals)) (local.get $additions)))
    (call $forget))

  (func (export "eligible") (param $bits i32) (param $words i32)
    (;eligible;)
    (call $forget))

  (func (export "pick") (result i32)
    (;pick;)
    (call $forget)
    (if (i32.eqz (global.get $endpoints)) (then (return (i32.const 0))))
    (global.set $last (i32.rem_u (i32.add (global.get $last) (i32.const 1)) (global.get $endpoints)))
    (call $answer (global.get $last))))
