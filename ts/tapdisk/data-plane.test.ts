import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Engine } from "../engine/engine.ts";
import { loadEngineModule } from "../engine/load-node.ts";
import { opKind, requestKind } from "../engine/records.ts";
import { DataPlane } from "./data-plane.ts";
import { generator, MemoryPort, transfer } from "./memory-port.ts";
import { Vbd } from "./vbd.ts";

const MIB = 1 << 20;

/** A data plane over a file in memory. Time passes only when the port may wait. */
class Bench {
  readonly port: MemoryPort;
  readonly engine: Engine;
  readonly vbd: Vbd;
  readonly plane: DataPlane;
  readonly answers = new Map<number, number>();
  now = 0;
  syncs = 0;

  constructor(file: Uint8Array, { dataBytes = MIB, seed = 1 } = {}) {
    this.port = new MemoryPort(file, dataBytes, generator(seed));
    this.port.onResponse = (slot, status) => this.answers.set(slot, status);
    this.engine = new Engine(loadEngineModule(), 4 * MIB);
    this.port.layout(this.engine.records.layout);
    this.vbd = new Vbd(this.engine.records, () => {});
    const { engine } = this;
    const counted = {
      records: engine.records,
      get pending() {
        return engine.pending;
      },
      step: (completions: number, tdRequests: number) => engine.step(completions, tdRequests),
      syncMetadata: () => {
        this.syncs++;
        engine.syncMetadata();
      },
    };
    this.plane = new DataPlane(this.port, counted, this.vbd, () => this.now);
  }

  open(driver: "vhd" | "aio", readOnly = false): this {
    const size = this.port.file.length;
    this.engine.open({ driver, path: "/memory", file: 0, size, blockDevice: false, readOnly });
    this.#runJob();
    const { sectors } = this.engine.openedDisk();
    this.vbd.open({ sectors, readOnly });
    return this;
  }

  close(): void {
    this.vbd.stopRetrying();
    this.engine.close();
    this.#runJob();
    this.engine.checkClosed();
  }

  /** Turns until all of these requests are answered. */
  finish(...slots: number[]): void {
    for (let turns = 0; slots.some((slot) => !this.answers.has(slot)); turns++) {
      expect(turns).toBeLessThan(100_000);
      this.plane.turn();
    }
  }

  #runJob(): void {
    do {
      this.plane.turn();
    } while (this.engine.jobRunning);
  }
}

describe("DataPlane", () => {
  it("serves a raw disk", () => {
    const bench = new Bench(new Uint8Array(64 * 512)).open("aio");
    bench.port.data.fill(0xab, 0, 1024);
    bench.port.send(1, transfer("write", 5, 0, 2));
    bench.finish(1);
    bench.port.send(2, transfer("read", 4, 4096, 4));
    bench.finish(2);
    expect([...bench.answers.values()]).toEqual([0, 0]);
    const read = bench.port.data.subarray(4096, 4096 + 2048);
    expect(read.subarray(512, 1536).every((byte) => byte === 0xab)).toBe(true);
    expect([...read.subarray(0, 512), ...read.subarray(1536)].every((byte) => byte === 0)).toBe(true);
  });

  it("passes errors of the file on", () => {
    const bench = new Bench(new Uint8Array(64 * 512)).open("aio");
    bench.port.onOperation = (kind) => (kind === opKind.read ? -5 : 0);
    bench.port.send(1, transfer("read", 0, 0, 1));
    bench.finish(1);
    expect(bench.answers.get(1)).toBe(-5);
  });

  it("tries again when the file's errors may pass", () => {
    const bench = new Bench(new Uint8Array(64 * 512)).open("aio");
    let failures = 3;
    bench.port.onOperation = (kind) => (kind === opKind.read && failures-- > 0 ? -11 : 0);
    bench.port.send(1, transfer("read", 0, 0, 1));
    const start = bench.now;
    while (!bench.answers.has(1)) {
      bench.plane.turn();
      bench.now += 100;
    }
    expect(bench.answers.get(1)).toBe(0);
    expect(bench.now - start).toBeGreaterThanOrEqual(3000);
  });

  it("waits without a limit only after metadata was written in a quiet second", () => {
    const bench = new Bench(new Uint8Array(64 * 512)).open("aio");
    const turn = (ms: number) => {
      bench.plane.turn();
      bench.now += ms;
      return bench.port.timeouts.at(-1);
    };
    turn(600);
    expect(bench.syncs).toBe(0);
    expect(turn(400)).toBe(400);
    expect(turn(0)).toBe(0);
    expect(bench.syncs).toBe(1);
    expect(turn(5000)).toBe(-1);
    expect(turn(0)).toBe(-1);
    expect(bench.syncs).toBe(1);
    bench.port.send(1, transfer("read", 0, 0, 1));
    bench.finish(1);
    bench.plane.turn(70);
    expect(bench.port.timeouts.at(-1)).toBe(70);
    bench.plane.turn();
    expect(bench.port.timeouts.at(-1)).toBe(1000);
  });
});

describe("the engine in WebAssembly, behind a vbd", () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "data-plane-"));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  function qemuImg(...args: string[]): string {
    return execFileSync("qemu-img", args, { cwd: folder, encoding: "utf8" });
  }

  it.each([
    ["dynamic", 11],
    ["dynamic", 12],
    ["fixed", 13],
  ])("does with a %s disk what a byte vector does (seed %i), and qemu reads it", (type, seed) => {
    qemuImg("create", "-q", "-f", "vpc", "-o", `subformat=${type},force_size=on`, "disk.vhd", "20M");
    const bench = new Bench(readFileSync(join(folder, "disk.vhd")), { seed }).open("vhd");
    const random = generator(seed);
    const sectors = (20 * MIB) / 512;
    const model = new Uint8Array(20 * MIB);

    const slots = 16;
    const slotBytes = MIB / slots;
    for (let round = 0; round < 60; round++) {
      // Requests of one round don't overlap: what such ones do is not defined.
      const taken: [number, number][] = [];
      const checks: (() => void)[] = [];
      for (let slot = 0; slot < slots; slot++) {
        const count = 1 + random(slotBytes / 512);
        const sector = random(sectors - count + 1);
        if (taken.some(([start, end]) => sector < end && start < sector + count)) {
          bench.answers.set(slot, 0);
          continue;
        }
        taken.push([sector, sector + count]);
        const buffer = slot * slotBytes;
        const data = bench.port.data.subarray(buffer, buffer + count * 512);
        const kind = random(2) === 0 ? "write" : "read";
        if (kind === "write") {
          data.fill(1 + random(255));
          data[0] = slot;
          model.set(data, sector * 512);
        }
        checks.push(() => {
          expect(Buffer.compare(data, model.subarray(sector * 512, (sector + count) * 512))).toBe(0);
        });
        const split = random(count);
        const whole = transfer(kind, sector, buffer, count);
        const halves: [number, number][] = [
          [buffer, split],
          [buffer + split * 512, count - split],
        ];
        bench.port.send(slot, split > 0 ? { ...whole, segments: halves } : whole);
      }
      bench.port.send(slots, { kind: requestKind.flush, sector: 0, segments: [] });
      bench.finish(...Array.from({ length: slots + 1 }, (_, slot) => slot));
      expect([...bench.answers.values()].every((status) => status === 0)).toBe(true);
      for (const check of checks) check();
      bench.answers.clear();
    }
    bench.close();

    writeFileSync(join(folder, "disk.vhd"), bench.port.file);
    qemuImg("convert", "-f", "vpc", "-O", "raw", "disk.vhd", "disk.raw");
    expect(Buffer.compare(readFileSync(join(folder, "disk.raw")), model)).toBe(0);
  });

  it("refuses requests after the disk was closed", () => {
    const bench = new Bench(new Uint8Array(64 * 512)).open("aio");
    bench.close();
    bench.port.send(1, transfer("read", 0, 0, 1));
    bench.finish(1);
    expect(bench.answers.get(1)).toBe(-108);
  });
});
