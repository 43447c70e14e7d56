pub(crate) mod imports {
    pub(crate) mod load {
        pub fn in_flight(_slot: u32) -> u32 {
            0
        }
        pub fn in_flight_all() -> Vec<u32> {
            vec![]
        }
        pub fn latency_micros(_slot: u32) -> u32 {
            0
        }
        pub fn latency_micros_all() -> Vec<u32> {
            vec![]
        }
    }
    pub(crate) mod request {
        pub fn service() -> Option<String> {
            None
        }
        pub fn client_ip() -> Option<String> {
            None
        }
        pub fn method() -> Option<String> {
            None
        }
        pub fn path() -> Option<String> {
            None
        }
        pub fn header(_name: &str) -> Option<Vec<u8>> {
            None
        }
        pub fn sni() -> Option<String> {
            None
        }
        pub fn identity() -> Option<String> {
            None
        }
        pub fn attempt() -> Option<u32> {
            None
        }
        pub fn tried() -> Vec<u32> {
            vec![]
        }
    }
}
