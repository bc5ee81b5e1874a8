// tapdisk is killed (SIGKILL) at a random instant under load: what was flushed is there, every sector is an old or a new
// one, and other programs can read the image.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { MIB, randomNumbers, SECTOR } from "./support/data.ts";
import { createWithQemu, readThrough, readWithQemu } from "./support/images.ts";
import { NbdClient } from "./support/nbd-client.ts";
import { run, temporaryDirectory } from "./support/run.ts";
import { backends, serve, type Tapdisk } from "./support/tapdisk.ts";

const SIZE = 48 * MIB;
const SECTORS = SIZE / SECTOR;
const WRITERS = 12;
const CONNECTIONS = 3;
/** In sectors. Small ones make partial blocks; the largest span the edge of a block now and then. */
const LENGTHS = [1, 2, 7, 8, 16, 64, 200, 1500];

/**
 * What each sector may hold. A write puts its number, which is never used again, and the sector's own number into each of
 * its sectors; 0 stands for a sector that was never written.
 */
class Expectation {
  /** The write that was acknowledged before the last flush began, and everything after it. The first is the durable one. */
  readonly #allowed = new Map<number, number[]>();
  #writes = 0;
  /** Sectors that some write holds: two writes to the same sector at the same time have no order. */
  readonly #busy = new Set<number>();
  /** Acknowledged writes that no flush has covered yet. */
  #unflushed: { first: number; count: number; write: number }[] = [];

  allowed(sector: number): readonly number[] {
    return this.#allowed.get(sector) ?? [0];
  }

  get written(): number {
    return this.#allowed.size;
  }

  /** Begins a write to sectors that no other is writing to. Yields its data. */
  begin(first: number, count: number): { write: number; data: Buffer } | undefined {
    for (let sector = first; sector < first + count; sector++) if (this.#busy.has(sector)) return undefined;
    const write = ++this.#writes;
    const data = Buffer.alloc(count * SECTOR);
    for (let index = 0; index < count; index++) {
      const sector = first + index;
      this.#busy.add(sector);
      this.#allowed.set(sector, [...this.allowed(sector), write]);
      fill(data.subarray(index * SECTOR, (index + 1) * SECTOR), write, sector);
    }
    return { write, data };
  }

  acknowledged(first: number, count: number, write: number): void {
    for (let sector = first; sector < first + count; sector++) this.#busy.delete(sector);
    this.#unflushed.push({ first, count, write });
  }

  /** To be called before a flush is sent; the function that it yields, when it is acknowledged. */
  flushBegins(): () => void {
    const covered = this.#unflushed;
    this.#unflushed = [];
    return () => {
      for (const { first, count, write } of covered) {
        for (let sector = first; sector < first + count; sector++) {
          const allowed = this.allowed(sector);
          const at = allowed.indexOf(write);
          if (at > 0) this.#allowed.set(sector, allowed.slice(at));
        }
      }
    };
  }

  /** Checks a disk against it. */
  check(disk: Buffer, what: string): void {
    expect(disk.length).toBe(SIZE);
    for (let sector = 0; sector < SECTORS; sector++) {
      const content = disk.subarray(sector * SECTOR, (sector + 1) * SECTOR);
      const write = content.readUInt32LE(0);
      const allowed = this.allowed(sector);
      if (!allowed.includes(write) || !content.equals(sectorOf(write, sector))) {
        const found = content.subarray(0, 24).toString("hex");
        throw new Error(`${what}: sector ${sector} has ${found} (write ${write}), allowed are the writes ${allowed}`);
      }
    }
  }

  /** Checks a disk; from then on exactly what was found is there, and nobody writes. */
  settle(disk: Buffer, what: string): void {
    this.check(disk, what);
    this.#busy.clear();
    this.#unflushed = [];
    for (const sector of this.#allowed.keys()) this.#allowed.set(sector, [disk.readUInt32LE(sector * SECTOR)]);
  }
}

/** The content of a sector: the numbers of the write and of the sector, all over it, so that a torn one shows. */
function fill(target: Buffer, write: number, sector: number): void {
  for (let at = 0; at < SECTOR; at += 8) {
    target.writeUInt32LE(write, at);
    target.writeUInt32LE(sector, at + 4);
  }
}

const ZEROS = Buffer.alloc(SECTOR);

function sectorOf(write: number, sector: number): Buffer {
  if (write === 0) return ZEROS;
  const content = Buffer.alloc(SECTOR);
  fill(content, write, sector);
  return content;
}

/** Writes and flushes until the connection goes away. Yields how many flushes were acknowledged. */
async function load(tapdisk: Tapdisk, expectation: Expectation, random: (below: number) => number): Promise<number> {
  const clients = await Promise.all(Array.from({ length: CONNECTIONS }, () => NbdClient.connect(tapdisk.socket)));
  let flushes = 0;
  async function writer(client: NbdClient): Promise<void> {
    for (;;) {
      if (random(12) === 0) {
        const done = expectation.flushBegins();
        expect((await client.flush()).error).toBe(0);
        done();
        flushes++;
        continue;
      }
      const count = LENGTHS[random(LENGTHS.length)] ?? 1;
      const first = random(SECTORS - count);
      const begun = expectation.begin(first, count);
      if (begun === undefined) continue;
      const { error } = await client.write(first * SECTOR, begun.data);
      expect(error).toBe(0);
      expectation.acknowledged(first, count, begun.write);
    }
  }
  const writers = clients.flatMap((client) => Array.from({ length: WRITERS / CONNECTIONS }, () => writer(client)));
  const ends = await Promise.allSettled(writers);
  // Nothing but the kill ends a writer.
  for (const end of ends) expect(end).toMatchObject({ status: "rejected", reason: { name: "Disconnected" } });
  return flushes;
}

describe.each(backends)("killed under load (%s)", (backend) => {
  test.each([
    { options: [], rounds: 5, seed: 1 },
    { options: ["--direct"], rounds: 2, seed: 2 },
  ])("nothing that was flushed is lost, $rounds times $options", async ({ options, rounds, seed }) => {
    const directory = temporaryDirectory();
    const path = join(directory, "disk.vhd");
    // A killed server leaves its socket, and the next one takes its place.
    const place = ["--io", backend, "--nbd", `unix:${join(directory, "nbd")}`];
    await createWithQemu(path, SIZE / MIB, { subformat: "dynamic", forceSize: true });
    const expectation = new Expectation();
    const random = randomNumbers(seed);
    let flushes = 0;
    for (let round = 0; round < rounds; round++) {
      const tapdisk = await serve(`vhd:${path}`, ...place, ...options);
      const loading = load(tapdisk, expectation, random);
      await new Promise((resolve) => setTimeout(resolve, 40 + random(500)));
      await tapdisk.kill();
      flushes += await loading;
      await run("qemu-img", ["info", "-f", "vpc", path]);
      expectation.check(await readWithQemu(path), "by qemu, right after the kill");
      const again = await serve(`vhd:${path}`, ...place);
      const disk = await readThrough(again);
      await again.stop();
      expectation.settle(disk, "by the next tapdisk");
    }
    expect(flushes).toBeGreaterThan(rounds);
    expect(expectation.written).toBeGreaterThan(1000);
    expectation.check(await readWithQemu(path), "by qemu, at last");
    expect(readFileSync(path).subarray(-512, -504).toString("latin1")).toBe("conectix");
  });
});
