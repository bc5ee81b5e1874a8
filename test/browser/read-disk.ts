/** Runs in a browser: the engine, the vbd and the data plane over a file in memory, as a page or a worker has it. */

import { Engine, type OpenedDisk } from "../../ts/engine/engine.ts";
import { loadEngineModule } from "../../ts/engine/load-browser.ts";
import { SECTOR } from "../../ts/engine/records.ts";
import { DataPlane } from "../../ts/tapdisk/data-plane.ts";
import { generator, MemoryPort, transfer } from "../../ts/tapdisk/memory-port.ts";
import { Vbd } from "../../ts/tapdisk/vbd.ts";

/** What was read of a disk. */
export interface Reading {
  readonly disk: OpenedDisk;
  /** SHA-256 of its content, in hexadecimal. */
  readonly sha256: string;
}

const SECTORS_AT_ONCE = 1024;

/** Reads the VHD that is beside the page, all of it. */
export async function readDisk(): Promise<Reading> {
  const file = new Uint8Array(await (await fetch("disk.vhd")).arrayBuffer());
  const module = await loadEngineModule(new URL("vhd_wasm_bg.wasm", location.href));
  const engine = new Engine(module, 1 << 20);
  const port = new MemoryPort(file, SECTORS_AT_ONCE * SECTOR, generator(1));
  port.layout(engine.records.layout);
  const vbd = new Vbd(engine.records, () => {});
  const plane = new DataPlane(port, engine, vbd, () => performance.now());
  engine.open({ driver: "vhd", path: "disk.vhd", file: 0, size: file.length, blockDevice: false, readOnly: true });
  do {
    plane.turn();
  } while (engine.jobRunning);
  const disk = engine.openedDisk();
  vbd.open({ sectors: disk.sectors, readOnly: true });

  const content = new Uint8Array(disk.sizeBytes);
  for (let sector = 0; sector < disk.sectors; sector += SECTORS_AT_ONCE) {
    const sectors = Math.min(SECTORS_AT_ONCE, disk.sectors - sector);
    let status: number | undefined;
    port.onResponse = (_, answer) => {
      status = answer;
    };
    port.send(0, transfer("read", sector, 0, sectors));
    while (status === undefined) plane.turn();
    if (status !== 0) throw new Error(`reading sector ${sector} failed: ${status}`);
    content.set(port.data.subarray(0, sectors * SECTOR), sector * SECTOR);
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return { disk, sha256: Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") };
}
