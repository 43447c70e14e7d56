use proptest::prelude::*;

use super::*;

/// Feeds the body in parts of `step` bytes; data, trailers, and what was left over.
fn decode_body(framing: Framing, wire: &[u8], step: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), Malformed> {
    let (mut decoder, mut data, mut trailers) = (BodyDecoder::new(framing), Vec::new(), None);
    let (mut buffer, mut joined) = (Bytes::new(), BytesMut::new());
    let mut parts = wire.chunks(step.max(1));
    loop {
        match decoder.decode(&mut buffer, &mut joined)? {
            Piece::Data(piece) => data.extend_from_slice(&piece),
            Piece::Trailers(map) => trailers = Some(map),
            Piece::End => return Ok((data, trailers, buffer.len() + parts.map(<[u8]>::len).sum::<usize>())),
            Piece::More => match parts.next() {
                Some(part) => buffer = [&buffer[..], part].concat().into(),
                None => return decoder.at_end_of_stream().map(|()| (data, trailers, 0)),
            },
        }
    }
}

#[test]
fn chunks_are_read_with_extensions_and_trailers() {
    let wire = b"4;name=\"v\"\r\nwiki\r\n0A\r\n0123456789\r\n0\r\nX-Sum: 7\r\nContent-Length: 1\r\n\
        X-Forwarded-Client-Cert: URI=spiffe://mesh/admin\r\nX-Forwarded-For: 10.0.0.1\r\nIf-Match: *\r\n\r\nHTTP";
    for step in [1, 2, 3, 7, wire.len()] {
        let (data, trailers, left) = decode_body(Framing::Chunked, wire, step).unwrap();
        assert_eq!(data, b"wiki0123456789");
        let trailers = trailers.unwrap();
        assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &HeaderValue::from_static("7")));
        assert_eq!(left, 4);
    }
}

#[test]
fn bad_chunks_are_refused() {
    for wire in [
        &b"x\r\n"[..],
        b"\r\n",
        b"-1\r\n",
        b"4\n",
        b"4 x\r\nwiki\r\n",
        b"4\r\nwikixx",
        b"4\r\r\nwiki",
        b"11111111111111111\r\n",
        &[b'1'; 300],
    ] {
        assert!(decode_body(Framing::Chunked, wire, 3).is_err(), "{wire:?}");
    }
}

#[test]
fn a_body_that_ends_early_is_an_error_unless_the_connection_delimits_it() {
    assert!(decode_body(Framing::Length(5), b"hi", 1).is_err());
    assert!(decode_body(Framing::Chunked, b"5\r\nhi", 1).is_err());
    assert_eq!(decode_body(Framing::UntilClose, b"hi", 1).unwrap().0, b"hi");
}

fn chunked(sizes: impl IntoIterator<Item = usize>) -> Bytes {
    let mut wire = Vec::new();
    for size in sizes {
        encode_chunk_size(size, &mut wire);
        wire.resize(wire.len() + size, b'x');
        wire.extend_from_slice(b"\r\n");
    }
    wire.into()
}

/// Issue 10, 1: small chunks that have arrived together cost one piece, and large ones no copy.
#[test]
fn small_chunks_are_joined_and_large_ones_are_not() {
    let pieces = |wire: &Bytes| {
        let (mut decoder, mut buffer, mut joined) = (BodyDecoder::new(Framing::Chunked), wire.clone(), BytesMut::new());
        let mut pieces = Vec::new();
        while let Piece::Data(data) = decoder.decode(&mut buffer, &mut joined).unwrap() {
            let is_copy = !wire.as_ptr_range().contains(&data.as_ptr());
            pieces.push((data.len(), is_copy));
        }
        pieces
    };
    assert_eq!(pieces(&chunked([4096; 8])), [(8 * 4096, true)]);
    assert_eq!(pieces(&chunked([100])), [(100, false)]);
    assert_eq!(pieces(&chunked([1, 2, LARGE, 3, 4])), [(3, true), (LARGE, false), (7, true)]);
    assert_eq!(pieces(&chunked([LARGE, LARGE])), [(LARGE, false); 2]);
    // The last of these is not all here.
    assert_eq!(pieces(&chunked([10, 20, 30]).slice(..38)), [(29, true)]);
    // Issue 10, 3: one call decodes so many at most.
    assert_eq!(pieces(&chunked([1; 2 * MAX_JOINED])), [(MAX_JOINED, true); 2]);
}

#[test]
fn nothing_is_left_of_a_buffer_that_is_empty() {
    for sizes in [&[100][..], &[100, 200], &[LARGE]] {
        let (mut buffer, mut decoder) = (chunked(sizes.iter().copied()), BodyDecoder::new(Framing::Chunked));
        let block = buffer.clone();
        let data = decoder.decode(&mut buffer, &mut BytesMut::new()).unwrap();
        assert_eq!(decoder.decode(&mut buffer, &mut BytesMut::new()).unwrap(), Piece::More);
        drop((data, decoder));
        assert!(buffer.is_empty() && block.is_unique(), "{sizes:?}");
    }
}

#[test]
fn what_came_before_a_bad_chunk_is_passed_on() {
    let (mut decoder, mut joined) = (BodyDecoder::new(Framing::Chunked), BytesMut::new());
    let mut buffer = Bytes::from_static(b"1\r\na\r\n2\r\nbc\r\nno chunk\r\n");
    assert_eq!(decoder.decode(&mut buffer, &mut joined), Ok(Piece::Data(Bytes::from_static(b"abc"))));
    assert_eq!(decoder.decode(&mut buffer, &mut joined), Err(Malformed::Chunk));
    assert_eq!(decoder.decode(&mut buffer, &mut joined), Err(Malformed::Chunk));
}

proptest! {
    /// What is encoded is decoded to the same, however the bytes are cut.
    #[test]
    fn chunks_survive_the_wire(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8), step in 1_usize..50) {
        let mut wire = Vec::new();
        for piece in &pieces {
            encode_chunk_size(piece.len(), &mut wire);
            wire.extend_from_slice(piece);
            wire.extend_from_slice(b"\r\n");
        }
        encode_last_chunk(None, &mut wire);
        let (data, _, left) = decode_body(Framing::Chunked, &wire, step).unwrap();
        prop_assert_eq!(data, pieces.concat());
        prop_assert_eq!(left, 0);
    }

    /// No bytes make the decoder panic or loop.
    #[test]
    fn arbitrary_bytes_are_read_or_refused(wire in prop::collection::vec(any::<u8>(), 0..200), step in 1_usize..20) {
        for framing in [Framing::Chunked, Framing::Length(50), Framing::UntilClose] {
            let _ = decode_body(framing, &wire, step);
        }
    }
}
