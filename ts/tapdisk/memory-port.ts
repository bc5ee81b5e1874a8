/** For tests: a port whose files and front ends are in memory, and which completes operations in any order. */

import {
  completion,
  type Layout,
  operation,
  opKind,
  recordWords,
  requestKind,
  response,
  signedWord,
  word,
} from "../engine/records.ts";
import type { Port } from "./port.ts";

const TWO_TO_32 = 2 ** 32;
/** Region of the data of all requests; any number but the staging area's will do. */
const DATA_REGION = 7;
const MAX_IN_FLIGHT = 64;

/** A request of a test, before it has a slot. */
export interface MemoryRequest {
  readonly kind: number;
  readonly flags?: number;
  readonly sector: number;
  readonly segments: readonly (readonly [buffer: number, sectors: number])[];
}

interface Op {
  readonly words: Uint32Array;
}

/** See the module's comment. It has one front end, number 1, whose requests come from {@link send}. */
export class MemoryPort implements Pick<Port, "turn" | "layout"> {
  /** The only file, number 0; grows as it is written. */
  file: Uint8Array;
  /** Where the data of requests is. */
  readonly data: Uint8Array;
  /** Called for each answer. */
  onResponse: (slot: number, status: number) => void = () => {};
  /** Called before an operation takes effect: what it returns instead of 0 is the operation's result. */
  onOperation: (kind: number) => number = () => 0;
  /** What each turn was allowed to wait. */
  readonly timeouts: number[] = [];
  readonly #random: (limit: number) => number;
  readonly #waiting: { slot: number; request: MemoryRequest }[] = [];
  readonly #inFlight: Op[] = [];
  #layout: Layout | undefined;

  /** `random` yields a whole number below its argument. */
  constructor(file: Uint8Array, dataBytes: number, random: (limit: number) => number) {
    this.file = file;
    this.data = new Uint8Array(dataBytes);
    this.#random = random;
  }

  layout(layout: Layout): void {
    this.#layout = layout;
  }

  /** Lets the front end have a request. */
  send(slot: number, request: MemoryRequest): void {
    this.#waiting.push({ slot, request });
  }

  turn(memory: Uint8Array, operations: number, responses: number, timeoutMs: number): number {
    const layout = this.#layout;
    if (layout === undefined) {
      throw new Error("the port has no layout");
    }
    this.timeouts.push(timeoutMs);
    const words = new Uint32Array(memory.buffer);
    const signed = new Int32Array(memory.buffer);
    for (let index = 0; index < operations; index++) {
      const at = (layout.operations.offset >>> 2) + index * recordWords.op;
      this.#inFlight.push({ words: words.slice(at, at + recordWords.op) });
    }
    for (let index = 0; index < responses; index++) {
      const at = (layout.responses.offset >>> 2) + index * recordWords.response;
      this.onResponse(word(words, at + response.slot), signedWord(signed, at + response.status));
    }
    const completions = this.#complete(memory, words, signed, layout);
    return completions | (this.#pull(words, layout) << 15);
  }

  #complete(memory: Uint8Array, words: Uint32Array, signed: Int32Array, layout: Layout): number {
    const wanted = this.#inFlight.length > MAX_IN_FLIGHT ? this.#inFlight.length : this.#random(8);
    const count = Math.min(wanted, this.#inFlight.length, layout.completions.capacity);
    for (let index = 0; index < count; index++) {
      const [op] = this.#inFlight.splice(this.#random(this.#inFlight.length), 1);
      if (op === undefined) {
        return index;
      }
      const at = (layout.completions.offset >>> 2) + index * recordWords.completion;
      words[at + completion.id] = word(op.words, operation.id);
      signed[at + completion.result] = this.#execute(op.words, memory, layout);
    }
    return count;
  }

  #pull(words: Uint32Array, layout: Layout): number {
    const count = Math.min(this.#random(12), this.#waiting.length, layout.requests.capacity);
    for (const [index, { slot, request }] of this.#waiting.splice(0, count).entries()) {
      const { segments, sector, kind, flags = 0 } = request;
      const sectors = segments.reduce((sum, [, part]) => sum + part, 0);
      const header = kind | (flags << 8) | (segments.length << 16);
      words.set(
        [1, slot, header, 0, sector % TWO_TO_32, sector / TWO_TO_32, sectors, DATA_REGION, ...segments.flat()],
        (layout.requests.offset >>> 2) + index * recordWords.frontEndRequest,
      );
    }
    return count;
  }

  #execute(op: Uint32Array, memory: Uint8Array, layout: Layout): number {
    const kind = word(op, operation.kind) & 0xff;
    const failure = this.onOperation(kind);
    if (failure !== 0) {
      return failure;
    }
    const offset = word(op, operation.offsetHigh) * TWO_TO_32 + word(op, operation.offset);
    const length = word(op, operation.lengthHigh) * TWO_TO_32 + word(op, operation.length);
    const staging = word(op, operation.region) === 0;
    const first = word(op, operation.buffer) + (staging ? layout.staging.offset : 0);
    const buffer = (staging ? memory : this.data).subarray(first, first + length);
    switch (kind) {
      case opKind.read: {
        const bytes = this.file.subarray(offset, offset + length);
        buffer.set(bytes);
        return bytes.length;
      }
      case opKind.write:
        this.#resize(Math.max(this.file.length, offset + length));
        this.file.set(buffer, offset);
        return length;
      case opKind.writeZeroes:
      case opKind.punchHole:
        this.#resize(Math.max(this.file.length, offset + length));
        this.file.fill(0, offset, offset + length);
        return 0;
      case opKind.sync:
        return 0;
      case opKind.truncate:
        this.#resize(offset);
        return 0;
      case opKind.zeroBuffer:
        buffer.fill(0);
        return 0;
      default:
        return -95;
    }
  }

  #resize(length: number): void {
    if (length !== this.file.length) {
      const file = new Uint8Array(length);
      file.set(this.file.subarray(0, length));
      this.file = file;
    }
  }
}

/** A request that reads or writes one piece of memory. */
export function transfer(kind: "read" | "write", sector: number, buffer: number, sectors: number): MemoryRequest {
  return { kind: requestKind[kind], sector, segments: [[buffer, sectors]] };
}

/** Whole numbers below an argument, the same in each run for the same seed. */
export function generator(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % limit;
  };
}
