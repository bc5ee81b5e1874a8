import { setImmediate } from "node:timers/promises";
import { Engine, type EngineModule, JobError, type OpenedDisk } from "../engine/engine.ts";
import {
  finished,
  type Records,
  recordWords,
  requestKind,
  SECTOR,
  signedWord,
  tdRequest,
  word,
} from "../engine/records.ts";
import { errnoOf } from "../tapdisk/errors.ts";
import type { PortModule } from "../tapdisk/port.ts";
import { HostFiles } from "./files.ts";

const COUNT_MASK = 0x7fff;
const COUNT_BITS = 15;
const TWO_TO_32 = 2 ** 32;
/** Between two looks at signals and timers. */
const INTERVAL_MS = 50;

/** Sectors of a chunk: 1 MiB. */
export const CHUNK_SECTORS = 2048;
const CHUNK_BYTES = CHUNK_SECTORS * SECTOR;
/** Chunks in memory, and in flight together. */
const DEPTH = 8;

/** A disk to open for {@link DiskIo}. */
export interface DiskSpec {
  readonly driver: "vhd" | "aio";
  readonly path: string;
  /** `inspect` reads what others may be writing; `read` keeps writers out, `write` everybody. */
  readonly access: "inspect" | "read" | "write";
}

/** Memory for a part of a disk's data. */
interface Slot {
  readonly tag: number;
  readonly bytes: Uint8Array;
  /** 0 while it is in flight, else 1; negative errno value of a failure. */
  status: number;
  /** What is done with it, in words. */
  what: string;
}

/**
 * The data of a disk, for tools: what a guest would read and write, in order. Data are in memory of the port's that
 * JavaScript can see; the engine says where they go, as always. To be closed by {@link close}.
 */
export class DiskIo {
  /** What was opened. */
  readonly disk: OpenedDisk;
  readonly #path: string;
  readonly #port: InstanceType<PortModule["Port"]>;
  readonly #engine: Engine;
  readonly #files: HostFiles;
  readonly #records: Records;
  readonly #region: number;
  readonly #slots: readonly Slot[];
  #operations = 0;
  #issued = 0;
  #next = performance.now() + INTERVAL_MS;

  /**
   * Opens a disk with its parents.
   * @throws JobError when it can't be opened, its cause being what the host has to say
   */
  constructor(engineModule: EngineModule, PortClass: PortModule["Port"], { driver, path, access }: DiskSpec) {
    this.#path = path;
    this.#port = new PortClass({ backend: "auto" });
    this.#engine = new Engine(engineModule, 64 << 20);
    this.#files = new HostFiles(this.#port, false);
    this.#records = this.#engine.records;
    this.#port.layout(this.#records.layout);
    const { region, bytes } = this.#port.allocateBuffer(DEPTH * CHUNK_BYTES);
    this.#region = region;
    this.#slots = Array.from({ length: DEPTH }, (_, tag) => ({
      tag,
      bytes: bytes.subarray(tag * CHUNK_BYTES, (tag + 1) * CHUNK_BYTES),
      status: 1,
      what: "",
    }));
    try {
      const file = this.#files.open(path, access);
      this.#engine.open({ driver, path, readOnly: access !== "write", ...file });
      this.#runJob();
      this.disk = this.#engine.openedDisk();
    } catch (error) {
      const cause = this.#files.failure;
      if (error instanceof JobError && cause !== undefined && errnoOf(cause) === error.errno) error.cause = cause;
      this.#files.closeAll();
      this.#port.close();
      throw error;
    }
  }

  /**
   * Hands the sectors to `take`, in order, chunk by chunk; the next ones are read meanwhile. The memory of a chunk is used
   * again when `take` returns.
   * @throws an error with an errno's value when a part can't be read
   */
  async read(sector: number, sectors: number, take: (bytes: Uint8Array) => void): Promise<void> {
    const queue: { readonly slot: Slot; readonly count: number }[] = [];
    let done = 0;
    for (let started = 0; done < sectors; ) {
      while (started < sectors && queue.length < DEPTH) {
        const count = Math.min(CHUNK_SECTORS, sectors - started);
        const slot = this.#slot(started / CHUNK_SECTORS);
        this.#submit(slot, requestKind.read, sector + started, count);
        queue.push({ slot, count });
        started += count;
      }
      const oldest = queue.shift();
      if (oldest === undefined) return;
      await this.#finish(oldest.slot);
      take(oldest.slot.bytes.subarray(0, oldest.count * SECTOR));
      done += oldest.count;
    }
  }

  /**
   * Writes sectors that `fill` puts into memory, chunk by chunk and in order. `fill` gets memory for as many sectors as are
   * missing, at most a chunk, and says how many bytes it has; it has fewer only at the end. Chunks of zeros are not written
   * where the disk is `empty`.
   * @returns bytes that there were
   * @throws a JobError when a part can't be written
   */
  async write(
    sector: number,
    sectors: number,
    fill: (bytes: Uint8Array) => Promise<number>,
    empty: boolean,
  ): Promise<number> {
    let bytes = 0;
    for (let started = 0; started < sectors; started += CHUNK_SECTORS) {
      const slot = this.#slot(started / CHUNK_SECTORS);
      await this.#finish(slot);
      const room = slot.bytes.subarray(0, Math.min(CHUNK_SECTORS, sectors - started) * SECTOR);
      const got = await fill(room);
      bytes += got;
      const whole = Math.ceil(got / SECTOR);
      room.subarray(got, whole * SECTOR).fill(0);
      this.#write(slot, sector + started, whole, empty);
      if (got < room.length) break;
    }
    for (const slot of this.#slots) await this.#finish(slot);
    return bytes;
  }

  /**
   * Makes everything durable and closes the disk.
   * @throws JobError when that fails
   */
  close(): void {
    try {
      this.#engine.close();
      this.#runJob();
      this.#engine.checkClosed();
    } finally {
      this.#files.closeAll();
      this.#port.close();
    }
  }

  #slot(index: number): Slot {
    return this.#slots[index % DEPTH] as Slot;
  }

  #write(slot: Slot, sector: number, sectors: number, empty: boolean): void {
    if (sectors === 0 || (empty && isZero(slot.bytes.subarray(0, sectors * SECTOR)))) return;
    this.#submit(slot, requestKind.write, sector, sectors);
    this.#turn(0);
  }

  #submit(slot: Slot, kind: number, sector: number, sectors: number): void {
    this.#records.refresh();
    const { words, layout } = this.#records;
    slot.what = `${kind === requestKind.read ? "reading" : "writing"} at sector ${sector}`;
    const at = (layout.tdRequests.offset >>> 2) + this.#issued * recordWords.tdRequest;
    slot.status = 0;
    words[at + tdRequest.tag] = slot.tag;
    words[at + tdRequest.kind] = kind;
    words[at + tdRequest.sector] = sector;
    words[at + tdRequest.sectorHigh] = sector / TWO_TO_32;
    words[at + tdRequest.sectors] = sectors;
    words[at + tdRequest.region] = this.#region;
    words[at + tdRequest.buffer] = slot.tag * CHUNK_BYTES;
    words[at + tdRequest.reserved] = 0;
    this.#issued += 1;
  }

  async #finish(slot: Slot): Promise<void> {
    while (slot.status === 0) {
      this.#turn(INTERVAL_MS);
      if (performance.now() >= this.#next) {
        await setImmediate();
        this.#next = performance.now() + INTERVAL_MS;
      }
    }
    this.#check(slot);
  }

  #check({ status, what }: Slot): void {
    if (status < 0) {
      const message = `${this.#path}: disk: ${what} failed (errno ${-status})`;
      throw new JobError({ message, errno: -status });
    }
  }

  #runJob(): void {
    this.#turn(0);
    while (this.#engine.jobRunning) {
      const want = this.#engine.want();
      if (want === null) {
        this.#turn(INTERVAL_MS);
      } else {
        this.#engine.provide(this.#files.fulfil(want));
        this.#turn(0);
      }
    }
  }

  /** Submits operations and requests, and waits for completions but not longer than `limit` milliseconds. */
  #turn(limit: number): void {
    // Other engines share the memory, and may have made it grow.
    this.#records.refresh();
    const wait = this.#engine.pending || this.#issued > 0 ? 0 : limit;
    const outcome = this.#port.turn(this.#records.bytes, this.#operations, 0, wait);
    const counts = this.#engine.step(outcome & COUNT_MASK, this.#issued);
    this.#issued = 0;
    this.#operations = counts & COUNT_MASK;
    const { words, signed, layout } = this.#records;
    for (let index = 0; index < counts >>> COUNT_BITS; index++) {
      const at = (layout.finished.offset >>> 2) + index * recordWords.finished;
      const slot = this.#slots[word(words, at + finished.tag)];
      const status = signedWord(signed, at + finished.status);
      if (slot !== undefined) slot.status = status < 0 ? status : 1;
    }
  }
}

const ZEROS = Buffer.alloc(CHUNK_BYTES);

/** Whether all bytes of a chunk are zero. */
function isZero(bytes: Uint8Array): boolean {
  return ZEROS.subarray(0, bytes.length).equals(bytes);
}
