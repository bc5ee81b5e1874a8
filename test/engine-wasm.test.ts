// The engine as WebAssembly, with any requests and any order in which its operations end, against a plain vector of bytes.

import fc from "fast-check";
import { expect, test } from "vitest";
import { requestKind } from "../ts/engine/records.ts";
import { expectSame, randomNumbers, SECTOR } from "./support/data.ts";
import { MemoryFile, MemoryHost } from "./support/memory-host.ts";
import { type BlockSpec, fixedImage, image } from "./support/vhd-image.ts";

const SLOTS = 16;
const SLOT_SECTORS = 64;
const SLOT_BYTES = SLOT_SECTORS * SECTOR;
const FUA = 1;
/** Tags of requests that have no slot. */
const FLUSH = 1000;

interface Transfer {
  readonly do: "write" | "read" | "zero";
  readonly sector: number;
  readonly count: number;
  readonly fua: boolean;
}

type Step =
  | Transfer
  | { readonly do: "complete"; readonly count: number }
  | { readonly do: "flush" }
  | { readonly do: "syncMetadata" }
  | { readonly do: "reopen" };

function steps(sectors: number): fc.Arbitrary<Step[]> {
  const range = fc
    .record({ sector: fc.nat(sectors - 1), count: fc.integer({ min: 1, max: SLOT_SECTORS }), fua: fc.boolean() })
    .map(({ sector, count, fua }) => ({ sector, count: Math.min(count, sectors - sector), fua }));
  const moving = (what: "write" | "read" | "zero") => range.map((where): Step => ({ do: what, ...where }));
  const plain = (what: "flush" | "syncMetadata" | "reopen") => fc.constant<Step>({ do: what });
  const complete = fc.integer({ min: 1, max: 8 }).map((count): Step => ({ do: "complete", count }));
  return fc.array(
    fc.oneof(
      { arbitrary: moving("write"), weight: 6 },
      { arbitrary: moving("read"), weight: 4 },
      { arbitrary: moving("zero"), weight: 1 },
      { arbitrary: plain("flush"), weight: 1 },
      { arbitrary: complete, weight: 8 },
      { arbitrary: plain("syncMetadata"), weight: 1 },
      { arbitrary: plain("reopen"), weight: 1 },
    ),
    { minLength: 1, maxLength: 120, size: "max" },
  );
}

interface InFlight {
  readonly sector: number;
  readonly count: number;
  /** The byte that a write puts everywhere; none for a read. */
  readonly fill: number | undefined;
}

/** The disk as it should be, and the requests in flight. */
class Model {
  readonly host: MemoryHost;
  readonly disk: Uint8Array;
  readonly pick: (below: number) => number;
  readonly #slots: (InFlight | undefined)[] = Array.from({ length: SLOTS });
  #fill = 0;
  #flushes = 0;

  constructor(host: MemoryHost, disk: Uint8Array, seed: number) {
    this.host = host;
    this.disk = disk;
    this.pick = randomNumbers(seed);
  }

  begin(step: Transfer): void {
    const { sector, count } = step;
    const writes = step.do !== "read";
    // Requests in flight that overlap have no order, so the model has none either.
    const collides = (other: InFlight | undefined) =>
      other !== undefined &&
      (writes || other.fill !== undefined) &&
      sector < other.sector + other.count &&
      other.sector < sector + count;
    const slot = this.#slots.indexOf(undefined);
    if (slot < 0 || this.#slots.some(collides)) return;
    const buffer = slot * SLOT_BYTES;
    this.#fill = (this.#fill % 250) + 1;
    const fill = step.do === "read" ? undefined : step.do === "zero" ? 0 : this.#fill;
    this.#slots[slot] = { sector, count, fill };
    // A write of zeros takes no data, and a read must leave nothing of what was there.
    this.host.guest.fill(step.do === "write" ? this.#fill : 0xee, buffer, buffer + count * SECTOR);
    const kind = { write: requestKind.write, read: requestKind.read, zero: requestKind.writeZeroes }[step.do];
    const flags = writes && step.fua ? FUA : 0;
    this.host.submit({ tag: slot, kind, flags, sector, sectors: count, buffer });
  }

  flush(): void {
    this.#flushes++;
    this.host.submit({ tag: FLUSH, kind: requestKind.flush, sector: 0, sectors: 0 });
  }

  /** Takes in what has finished. */
  drain(): void {
    for (const { tag, status } of this.host.finished.splice(0)) {
      if (status !== 0) throw new Error(`request ${tag} failed with ${status}`);
      if (tag === FLUSH) {
        this.#flushes--;
        continue;
      }
      const request = this.#slots[tag];
      if (request === undefined) throw new Error(`request ${tag} finished twice`);
      this.#slots[tag] = undefined;
      const [start, bytes] = [request.sector * SECTOR, request.count * SECTOR];
      if (request.fill !== undefined) {
        this.disk.fill(request.fill, start, start + bytes);
      } else {
        const found = this.host.guest.subarray(tag * SLOT_BYTES, tag * SLOT_BYTES + bytes);
        expectSame(found, this.disk.subarray(start, start + bytes), `a read at sector ${request.sector}`);
      }
    }
  }

  settle(): void {
    this.host.settle(this.pick);
    this.drain();
    if (this.#flushes !== 0 || this.#slots.some((slot) => slot !== undefined)) throw new Error("a request was lost");
  }
}

interface Setup {
  readonly files: Readonly<Record<string, Uint8Array>>;
  /** What is on the disk. */
  readonly disk: Uint8Array;
  readonly driver?: "vhd" | "aio";
  readonly cache?: number;
}

const DISK = "/disks/disk.vhd";

/** Runs the steps, then closes the disk, opens it again, and compares all of it. */
function check({ files, disk, driver = "vhd", cache = 1 << 20 }: Setup, todo: readonly Step[], seed: number): void {
  const memory: Record<string, MemoryFile> = {};
  for (const [path, content] of Object.entries(files)) memory[path] = new MemoryFile(content);
  const host = new MemoryHost(memory, SLOTS * SLOT_BYTES, cache);
  try {
    const model = new Model(host, disk.slice(), seed);
    const sectors = disk.length / SECTOR;
    expect(host.open(DISK, { driver }).sectors).toBe(sectors);
    for (const step of todo) {
      if (step.do === "complete") host.complete(step.count, model.pick);
      else if (step.do === "flush") model.flush();
      else if (step.do === "syncMetadata") host.syncMetadata();
      else if (step.do === "reopen") {
        model.settle();
        host.close();
        host.open(DISK, { driver });
      } else model.begin(step);
      model.drain();
    }
    model.settle();
    expectSame(host.readDisk(sectors), model.disk, "the disk before closing");
    host.close();
    expect(host.open(DISK, { driver, readOnly: true }).warnings).toEqual([]);
    expectSame(host.readDisk(sectors), model.disk, "the disk after opening it again");
    for (const [path, file] of Object.entries(memory)) {
      if (path !== DISK) expect(file.changes).toBe(0);
    }
  } finally {
    host.free();
  }
}

const options: fc.Parameters<unknown> = { numRuns: 250, interruptAfterTimeLimit: 15_000 };

/** Some blocks, in no order, each with any sectors of its first 64 present, over and over. */
function blocks(count: number): fc.Arbitrary<BlockSpec[]> {
  const block = fc.record({ block: fc.nat(count - 1), bits: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }) });
  return fc
    .uniqueArray(block, { selector: (one) => one.block, maxLength: count })
    .map((all) =>
      all.map(({ block, bits }) => ({ block, present: (sector) => ((bits >> BigInt(sector % 64)) & 1n) === 1n })),
    );
}

const SECTORS = 600;
const blockSize = fc.integer({ min: 12, max: 16 }).map((shift) => 1 << shift);
const seed = fc.nat();
const blocksOf = (size: number) => Math.ceil((SECTORS * SECTOR) / size);
const fill = (sector: number) => 0x80 | (sector % 100);
const parentFill = (sector: number) => 1 + (sector % 100);

test("a dynamic disk with partial bitmaps, with little room for bitmaps", () => {
  const setup = blockSize.chain((size) =>
    fc.record({ size: fc.constant(size), blocks: blocks(blocksOf(size)), cache: fc.nat(4096) }),
  );
  fc.assert(
    fc.property(setup, steps(SECTORS), seed, ({ size, blocks, cache }, todo, seed) => {
      const disk = new Uint8Array(SECTORS * SECTOR);
      const file = image({ size: disk.length, blockSize: size, blocks, fill }, disk);
      check({ files: { [DISK]: file }, disk, cache }, todo, seed);
    }),
    options,
  );
});

test("a differencing disk, on a parent with other blocks", () => {
  const setup = fc.record({ own: blockSize, parents: blockSize }).chain(({ own, parents }) =>
    fc.record({
      own: fc.constant(own),
      parents: fc.constant(parents),
      child: blocks(blocksOf(own)),
      parent: blocks(blocksOf(parents)),
    }),
  );
  fc.assert(
    fc.property(setup, steps(SECTORS), seed, ({ own, parents, child, parent }, todo, seed) => {
      const disk = new Uint8Array(SECTORS * SECTOR);
      const [size, uuid] = [disk.length, 9];
      const base = image({ size, blockSize: parents, blocks: parent, fill: parentFill, uuid }, disk);
      const leaf = { size, blockSize: own, blocks: child, fill, parent: { uuid, path: "base.vhd" } };
      const files = { "/disks/base.vhd": base, [DISK]: image(leaf, disk) };
      check({ files, disk }, todo, seed);
    }),
    options,
  );
});

test("a fixed disk, and a raw one", () => {
  const disk = Buffer.concat(Array.from({ length: SECTORS }, (_, sector) => Buffer.alloc(SECTOR, fill(sector))));
  fc.assert(
    fc.property(steps(SECTORS), seed, fc.boolean(), (todo, seed, raw) => {
      if (raw) check({ files: { [DISK]: disk }, disk, driver: "aio" }, todo, seed);
      else check({ files: { [DISK]: fixedImage(disk) }, disk }, todo, seed);
    }),
    options,
  );
});
