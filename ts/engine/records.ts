/**
 * Typed views of the flat records in WebAssembly memory through which the vbd, the engine and the native port talk.
 *
 * The layout of each record is documented in `crates/vhd/src/record.rs`; a test compares the two. Records are
 * little-endian 32-bit words, so on the (little-endian) machines that we run on a `Uint32Array` reads them as they are.
 */

/** Bytes in a sector, the unit of requests. */
export const SECTOR = 512;

/** Words in each record, and the segments that fit into a front end's request. */
export const recordWords = {
  tdRequest: 8,
  finished: 2,
  op: 12,
  completion: 2,
  frontEndRequest: 32,
  response: 4,
  maxSegments: 12,
} as const;

/** What a request asks of a virtual disk; {@link frontEndClosed} in the same field tells that a front end has gone. */
export const requestKind = {
  read: 0,
  write: 1,
  flush: 2,
  discard: 3,
  writeZeroes: 4,
  blockStatus: 5,
} as const;

/** In the operation field of a front end's request: its client has gone and nothing of it is in flight any more. */
export const frontEndClosed = 255;

/** What an operation does to a file. */
export const opKind = {
  read: 0,
  write: 1,
  writeZeroes: 2,
  punchHole: 3,
  sync: 4,
  truncate: 5,
  copyRange: 6,
  zeroBuffer: 7,
  copyToBuffer: 8,
  seekHole: 9,
  dataMap: 10,
} as const;

/** Words of a request as a front end pulled it; pairs of buffer and sectors follow from `segments` on. */
export const frontEndRequest = {
  frontEnd: 0,
  slot: 1,
  /** operation | flags << 8 | number of segments << 16 */
  operation: 2,
  error: 3,
  sector: 4,
  sectorHigh: 5,
  sectors: 6,
  region: 7,
  segments: 8,
} as const;

/** Words of a part of a request, as the vbd hands it to the engine. */
export const tdRequest = {
  tag: 0,
  /** kind | flags << 8 */
  kind: 1,
  sector: 2,
  sectorHigh: 3,
  sectors: 4,
  region: 5,
  buffer: 6,
  reserved: 7,
} as const;

/** Words of a part of a request that is over; the status of a block status request is its number of extents. */
export const finished = { tag: 0, status: 1 } as const;

/** Words of the answer to a front end's request; the payload is the number of extents of a block status request. */
export const response = { frontEnd: 0, slot: 1, status: 2, payload: 3 } as const;

/** Words of a file operation. */
export const operation = {
  id: 0,
  /** kind | fast << 8 | file << 16 */
  kind: 1,
  offset: 2,
  offsetHigh: 3,
  length: 4,
  lengthHigh: 5,
  region: 6,
  buffer: 7,
  sourceOffset: 8,
  sourceOffsetHigh: 9,
  sourceFile: 10,
} as const;

/** Words of a file operation that is over. */
export const completion = { id: 0, result: 1 } as const;

/** Where an area of records is: byte offset in memory, and capacity in records. */
export interface Area {
  readonly offset: number;
  readonly capacity: number;
}

/** Where all areas are; they stay there as long as the engine lives. */
export interface Layout {
  readonly operations: Area;
  readonly completions: Area;
  readonly tdRequests: Area;
  readonly finished: Area;
  readonly requests: Area;
  readonly responses: Area;
  readonly staging: { readonly offset: number; readonly length: number };
}

/** What may hold the records: a `WebAssembly.Memory`, or anything with a buffer in tests. */
export interface RecordMemory {
  readonly buffer: ArrayBufferLike;
}

/** Views of the memory that holds the records, renewed when the memory has grown. */
export class Records {
  readonly layout: Layout;
  /** The whole memory as words; `layout.….offset >>> 2` is an area's first. */
  words: Uint32Array;
  /** The same as signed words, for statuses and results. */
  signed: Int32Array;
  /** The same as bytes. */
  bytes: Uint8Array;
  readonly #memory: RecordMemory;

  constructor(memory: RecordMemory, layout: Layout) {
    this.#memory = memory;
    this.layout = layout;
    this.words = new Uint32Array(memory.buffer);
    this.signed = new Int32Array(memory.buffer);
    this.bytes = new Uint8Array(memory.buffer);
  }

  /** To be called after each call into WebAssembly: growth detaches the buffer that the views show. */
  refresh(): void {
    const buffer = this.#memory.buffer;
    if (this.words.buffer !== buffer) {
      this.words = new Uint32Array(buffer);
      this.signed = new Int32Array(buffer);
      this.bytes = new Uint8Array(buffer);
    }
  }
}

// For indexes that lie in an array by construction. One function for each type of array, so that each sees only that.

/** The word at `index`. */
export function word(words: Uint32Array, index: number): number {
  return words[index] as number;
}

/** The signed word at `index`. */
export function signedWord(words: Int32Array, index: number): number {
  return words[index] as number;
}
