import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { filler } from "../../test/support/tools.ts";
import { loadEngineModule } from "../engine/load-node.ts";
import { portModule } from "../tapdisk/port.ts";
import { CHUNK_SECTORS, DiskIo, type DiskSpec } from "./disk-io.ts";
import { JobRunner } from "./job-runner.ts";

const SECTOR = 512;
const SIZE = 80 << 20;

let folder: string;
let path: string;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "disk-io-"));
  path = join(folder, "disk.vhd");
  const runner = new JobRunner(loadEngineModule(), portModule().Port);
  const identity = { uuid: "00112233-4455-6677-8899-aabbccddeeff", now: 1_700_000_000 };
  z.null().parse(await runner.run({ job: "create", path, type: "dynamic", size: SIZE, ...identity }));
  runner.close();
});
afterEach(() => rmSync(folder, { recursive: true }));

function open(spec: Partial<DiskSpec> = {}): DiskIo {
  return new DiskIo(loadEngineModule(), portModule().Port, { driver: "vhd", path, access: "write", ...spec });
}

async function read(disk: DiskIo, sector: number, sectors: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  await disk.read(sector, sectors, (bytes) => {
    parts.push(Buffer.from(bytes));
  });
  return Buffer.concat(parts);
}

function sample(bytes: number): Buffer {
  return Buffer.from(Uint8Array.from({ length: bytes }, (_, index) => (index * 7 + (index >> 9) * 13) & 0xff));
}

describe("the data of a disk", () => {
  it("is read as it was written, in chunks and across them", async () => {
    const data = sample(SIZE / 2);
    const disk = open();
    expect(disk.disk.sectors).toBe(SIZE / SECTOR);
    expect(await disk.write(3, SIZE / SECTOR - 3, filler(data), true)).toBe(data.length);
    disk.close();
    const again = open({ access: "read" });
    expect((await read(again, 3, data.length / SECTOR)).equals(data)).toBe(true);
    expect((await read(again, 0, 3)).every((byte) => byte === 0)).toBe(true);
    const odd = CHUNK_SECTORS - 1;
    expect((await read(again, 3 + odd, 5)).equals(data.subarray(odd * SECTOR, (odd + 5) * SECTOR))).toBe(true);
    again.close();
  });

  it("ends with whole sectors, the rest of the last one being zeros", async () => {
    const disk = open();
    const once = [Buffer.from("some bytes")];
    const fill = async (bytes: Uint8Array) => {
      bytes.fill(0xff);
      const part = once.shift() ?? Buffer.alloc(0);
      bytes.set(part);
      return part.length;
    };
    expect(await disk.write(0, 10, fill, false)).toBe(10);
    expect((await read(disk, 0, 2)).toString()).toBe(`some bytes${"\0".repeat(1014)}`);
    disk.close();
  });

  it("takes no space for zeros", async () => {
    const disk = open();
    const fill = async (bytes: Uint8Array) => {
      bytes.fill(0);
      return bytes.length;
    };
    expect(await disk.write(0, SIZE / SECTOR, fill, true)).toBe(SIZE);
    disk.close();
    expect(readFileSync(path).length).toBeLessThan(1 << 20);
  });

  it("is shared with no writer, unless it is only looked at", () => {
    const disk = open();
    expect(() => open({ access: "read" })).toThrow(/in use|EBUSY/);
    open({ access: "inspect" }).close();
    disk.close();
  });

  it("tells what can't be opened or read", async () => {
    expect(() => open({ path: join(folder, "none") })).toThrow(/none/);
    writeFileSync(join(folder, "junk"), "junk");
    expect(() => open({ path: join(folder, "junk") })).toThrow(/junk.*too small/);
    const raw = join(folder, "raw");
    writeFileSync(raw, "");
    truncateSync(raw, 1 << 20);
    const disk = open({ driver: "aio", path: raw, access: "inspect" });
    await expect(read(disk, 5000, 1)).rejects.toThrow(/raw: disk: reading at sector 5000/);
    disk.close();
  });

  it("goes on though another engine makes the memory grow", async () => {
    const module = loadEngineModule();
    const { Port } = portModule();
    const disk = new DiskIo(module, Port, { driver: "vhd", path, access: "read" });
    const runners = Array.from({ length: 8 }, () => new JobRunner(module, Port));
    expect((await read(disk, 0, 4096)).length).toBe(4096 * SECTOR);
    for (const runner of runners) runner.close();
    disk.close();
  });
});
