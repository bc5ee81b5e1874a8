/** What it costs to have a disk more in a process. */

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { makeLarge } from "../../support/large-image.ts";
import { PLAIN } from "../cases.ts";
import { measure } from "../clients.ts";
import { MANY_DISKS } from "../probes.ts";
import { anonymousBytes, proportionalBytes, residentBytes } from "../processes.ts";
import type { Probe } from "../results.ts";
import { startTapdisk } from "../services.ts";

const TIMES = 3;
const MIB = 1 << 20;
const GIB = 2 ** 30;
const DISK_BYTES = 10 * GIB;
const LOAD_SECONDS = 2;

/** All of the disk: every bitmap is read, and every buffer of a connection used. */
const LOAD = { ...PLAIN, name: "memory", title: "memory", pattern: "randread", blockBytes: 4096, depth: 32 } as const;

/** Bytes. */
interface Memory {
  readonly resident: number;
  readonly proportional: number;
  readonly anonymous: number;
}

/** Memory of processes with one disk and with many, while all of them are read. Images go into `folder`. */
export async function probeMemory(folder: string, commands: string): Promise<Probe[]> {
  const images = Array.from({ length: MANY_DISKS }, (_, index) => join(folder, `memory.${index}.vhd`));
  for (const image of images) {
    makeLarge(image, DISK_BYTES / (2 * MIB));
  }
  const loaded: number[] = [];
  const resident: number[] = [];
  const proportional: number[] = [];
  const anonymous: number[] = [];
  for (let time = 0; time < TIMES; time++) {
    const one = await underLoad(images.slice(0, 1), commands);
    const many = await underLoad(images, commands);
    loaded.push(one.resident / MIB);
    const perDisk = (what: keyof Memory) => (many[what] - one[what]) / (MANY_DISKS - 1) / MIB;
    resident.push(perDisk("resident"));
    proportional.push(perDisk("proportional"));
    anonymous.push(perDisk("anonymous"));
  }
  await Promise.all(images.map((image) => rm(image)));
  return [
    { name: "resident-loaded", values: loaded },
    { name: "resident-disk", values: resident },
    { name: "proportional-disk", values: proportional },
    { name: "anonymous-disk", values: anonymous },
  ];
}

async function underLoad(images: readonly string[], commands: string): Promise<Memory> {
  const service = await startTapdisk(
    {
      places: images.map((image) => ({ image, socket: `${image}.socket` })),
      content: undefined,
      diskBytes: DISK_BYTES,
      mode: "buffered",
      readOnly: false,
      bitmapSpread: 1,
      commands,
      blktap: undefined,
    },
    "nbd",
  );
  try {
    const load = { case: LOAD, mode: "buffered", seconds: LOAD_SECONDS, diskBytes: DISK_BYTES, seed: 1 } as const;
    const loading = measure(service.endpoints, { ...load, alignBytes: LOAD.blockBytes }, commands);
    loading.catch(() => {});
    // Near its end.
    await sleep(800 * LOAD_SECONDS);
    const [pid = 0] = service.pids;
    const memory = {
      resident: residentBytes(pid),
      proportional: proportionalBytes(pid),
      anonymous: anonymousBytes(pid),
    };
    await loading;
    return memory;
  } finally {
    await service.stop(false);
  }
}
