/**
 * A host for the engine's WebAssembly module without any I/O: files and the guest's memory are bytes, and the test decides
 * in which order operations end. The twin of `crates/vhd/tests/support` on this side of the module's boundary.
 */

import { type Answer, Engine, type EngineModule, type OpenedDisk, type Want } from "../../ts/engine/engine.ts";
import { loadEngineModule } from "../../ts/engine/load-node.ts";
import {
  completion,
  finished,
  operation,
  opKind,
  recordWords,
  SECTOR,
  signedWord,
  tdRequest,
  word,
} from "../../ts/engine/records.ts";

const TWO_TO_32 = 2 ** 32;
/** The region number of the guest's memory; any but the staging area's. */
const GUEST = 5;
const STAGING = 0;
/** More operations in a row than opening and closing any image of a test takes. */
const ENDLESS = 100_000;

/** A file in memory. */
export class MemoryFile {
  #bytes: Uint8Array;
  #length: number;
  /** Operations that could have changed it. */
  changes = 0;

  constructor(content: Uint8Array) {
    this.#bytes = content.slice();
    this.#length = content.length;
  }

  get content(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  resize(length: number): void {
    if (length > this.#bytes.length) {
      const bytes = new Uint8Array(Math.max(length, 2 * this.#bytes.length));
      bytes.set(this.content);
      this.#bytes = bytes;
    }
    this.#bytes.fill(0, Math.min(length, this.#length));
    this.#length = length;
  }

  grow(length: number): void {
    if (length > this.#length) this.resize(length);
  }
}

export interface HostRequest {
  readonly tag: number;
  readonly kind: number;
  readonly flags?: number;
  readonly sector: number;
  readonly sectors: number;
  /** Where in the guest's memory. */
  readonly buffer?: number;
}

/** How a request ended. */
export interface Finished {
  readonly tag: number;
  readonly status: number;
}

const module: EngineModule = loadEngineModule();

/** An engine, the files that it may find, and the guest's memory. */
export class MemoryHost {
  readonly guest: Uint8Array;
  readonly finished: Finished[] = [];
  readonly #files: ReadonlyMap<string, MemoryFile>;
  readonly #opened: MemoryFile[] = [];
  readonly #engine: Engine;
  readonly #free: () => void;
  #inFlight: Uint32Array[] = [];

  /** `files` by their paths. */
  constructor(files: Readonly<Record<string, MemoryFile>>, guestBytes: number, bitmapCacheBytes = 1 << 20) {
    this.#files = new Map(Object.entries(files));
    this.guest = new Uint8Array(guestBytes);
    let free = () => {};
    // Engines are large, and the garbage collector is in no hurry.
    class Freed extends module.Engine {
      constructor(cache: number) {
        super(cache);
        free = () => this.free();
      }
    }
    this.#engine = new Engine({ Engine: Freed, memory: module.memory }, bitmapCacheBytes);
    this.#free = free;
  }

  /** Gives the engine's memory back. */
  free(): void {
    this.#free();
  }

  /** Operations that the engine has handed out and that are not carried out. */
  get inFlight(): number {
    return this.#inFlight.length;
  }

  /**
   * Opens a disk.
   * @throws what the engine says is wrong with it
   */
  open(path: string, options: { driver?: "vhd" | "aio"; readOnly?: boolean } = {}): OpenedDisk {
    const { driver = "vhd", readOnly = false } = options;
    this.#opened.length = 0;
    this.#engine.open({ driver, path, readOnly, ...this.#provide(path) });
    this.#runJob();
    return this.#engine.openedDisk();
  }

  /** Closes the disk. */
  close(): void {
    this.#engine.close();
    this.#runJob();
    this.#engine.checkClosed();
  }

  syncMetadata(): void {
    this.#engine.syncMetadata();
    this.#step(0, 0);
  }

  submit(request: HostRequest): void {
    const { words, layout } = this.#engine.records;
    const at = layout.tdRequests.offset >>> 2;
    words[at + tdRequest.tag] = request.tag;
    words[at + tdRequest.kind] = request.kind | ((request.flags ?? 0) << 8);
    words[at + tdRequest.sector] = request.sector % TWO_TO_32;
    words[at + tdRequest.sectorHigh] = Math.floor(request.sector / TWO_TO_32);
    words[at + tdRequest.sectors] = request.sectors;
    words[at + tdRequest.region] = GUEST;
    words[at + tdRequest.buffer] = request.buffer ?? 0;
    words[at + tdRequest.reserved] = 0;
    this.#step(0, 1);
  }

  /** Carries out some operations in flight, in one batch: `pick` chooses each, a whole number below its argument. */
  complete(count: number, pick: (below: number) => number): void {
    const { words, signed, layout } = this.#engine.records;
    const batch = Math.min(count, this.#inFlight.length, layout.completions.capacity);
    for (let index = 0; index < batch; index++) {
      const [op] = this.#inFlight.splice(pick(this.#inFlight.length), 1);
      if (op === undefined) throw new Error("there is no such operation");
      const at = (layout.completions.offset >>> 2) + index * recordWords.completion;
      words[at + completion.id] = word(op, operation.id);
      signed[at + completion.result] = this.#execute(op);
    }
    this.#step(batch, 0);
  }

  /** Carries out operations until the engine wants no more. */
  settle(pick: (below: number) => number = () => 0): void {
    for (let steps = 0; this.#inFlight.length > 0; steps++) {
      if (steps > ENDLESS) throw new Error("the engine never comes to an end");
      this.complete(1, pick);
    }
  }

  /** Reads the whole disk, piece by piece. */
  readDisk(sectors: number): Uint8Array {
    const disk = new Uint8Array(sectors * SECTOR);
    const step = Math.min(2048, Math.floor(this.guest.length / SECTOR));
    for (let sector = 0; sector < sectors; sector += step) {
      const count = Math.min(step, sectors - sector);
      this.guest.fill(0xee);
      this.submit({ tag: 0xffff, kind: 0, sector, sectors: count });
      this.settle();
      const answer = this.finished.pop();
      if (answer?.tag !== 0xffff || answer.status !== 0) {
        throw new Error(`reading ${count} sectors from ${sector} on ended with ${answer?.status}`);
      }
      disk.set(this.guest.subarray(0, count * SECTOR), sector * SECTOR);
    }
    return disk;
  }

  #provide(path: string): { file: number; size: number; blockDevice: boolean } {
    const file = this.#files.get(path);
    if (file === undefined) throw new Error(`no file ${path}`);
    this.#opened.push(file);
    return { file: this.#opened.length - 1, size: file.content.length, blockDevice: false };
  }

  /** Does what opening a disk wants. */
  #fulfil(want: Want): Answer {
    if ("close" in want) return { done: {} };
    if (!("open" in want)) throw new Error(`an unexpected want: ${JSON.stringify(want)}`);
    return this.#files.has(want.open.path) ? { opened: this.#provide(want.open.path) } : { errno: 2 };
  }

  #runJob(): void {
    this.#step(0, 0);
    for (let steps = 0; this.#engine.jobRunning; steps++) {
      if (steps > ENDLESS) throw new Error("the job never comes to an end");
      const want = this.#engine.want();
      if (want === null) {
        if (this.#inFlight.length === 0) throw new Error("the job waits for nothing");
        this.complete(1, () => 0);
        continue;
      }
      this.#engine.provide(this.#fulfil(want));
      this.#step(0, 0);
    }
  }

  #step(completions: number, requests: number): void {
    let counts = this.#engine.step(completions, requests);
    for (;;) {
      const { words, signed, layout } = this.#engine.records;
      for (let index = 0; index < (counts & 0x7fff); index++) {
        const at = (layout.operations.offset >>> 2) + index * recordWords.op;
        this.#inFlight.push(words.slice(at, at + recordWords.op));
      }
      for (let index = 0; index < counts >>> 15; index++) {
        const at = (layout.finished.offset >>> 2) + index * recordWords.finished;
        this.finished.push({
          tag: word(words, at + finished.tag),
          status: signedWord(signed, at + finished.status),
        });
      }
      if (!this.#engine.pending) return;
      counts = this.#engine.step(0, 0);
    }
  }

  #execute(op: Uint32Array): number {
    const kind = word(op, operation.kind) & 0xff;
    const file = this.#opened[word(op, operation.kind) >>> 16];
    const offset = word(op, operation.offsetHigh) * TWO_TO_32 + word(op, operation.offset);
    const length = word(op, operation.lengthHigh) * TWO_TO_32 + word(op, operation.length);
    const { bytes, layout } = this.#engine.records;
    const inStaging = word(op, operation.region) === STAGING;
    const area = inStaging ? bytes.subarray(layout.staging.offset).subarray(0, layout.staging.length) : this.guest;
    const first = word(op, operation.buffer);
    const buffer = area.subarray(first, first + length);
    const hasBuffer = kind === opKind.read || kind === opKind.write || kind === opKind.zeroBuffer;
    if (hasBuffer && buffer.length !== length) throw new Error(`an operation outside of its memory: ${op}`);
    if (kind === opKind.zeroBuffer) {
      buffer.fill(0);
      return 0;
    }
    if (file === undefined) throw new Error(`an operation on no file: ${op}`);
    if (kind === opKind.read) {
      const found = file.content.subarray(offset, offset + length);
      buffer.set(found);
      return found.length;
    }
    if (kind === opKind.sync) return 0;
    file.changes++;
    switch (kind) {
      case opKind.write:
        file.grow(offset + length);
        file.content.set(buffer, offset);
        return length;
      case opKind.writeZeroes:
      case opKind.punchHole:
        file.grow(offset + length);
        file.content.fill(0, offset, offset + length);
        return 0;
      case opKind.truncate:
        file.resize(offset);
        return 0;
      default:
        throw new Error(`unknown operation ${kind}`);
    }
  }
}
