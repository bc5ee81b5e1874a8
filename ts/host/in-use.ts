import { readdirSync, readFileSync, type Stats, statSync } from "node:fs";

/** The name of processes that serve disks. */
const SERVER = "tapdisk";
const ACCESS_MODE = 0o3;
const READ_ONLY = 0;

/**
 * The processes named `tapdisk` that have a file or block device open for writing: the original takes no locks, so that this
 * is the only way to notice it. One that has it open read-only, as a parent, doesn't count. Processes that this user may not
 * look into are not seen.
 */
export function serversOf(path: string): number[] {
  const file = statusOf(path);
  if (file === undefined) return [];
  const processes = namesIn("/proc").filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid);
  return processes.filter((pid) => textOf(`/proc/${pid}/comm`) === `${SERVER}\n` && writes(pid, file)).map(Number);
}

function writes(pid: string, file: Stats): boolean {
  return namesIn(`/proc/${pid}/fd`).some((fd) => {
    const open = statusOf(`/proc/${pid}/fd/${fd}`);
    if (open === undefined || !isSame(open, file)) return false;
    const flags = /^flags:\s*(\d+)$/m.exec(textOf(`/proc/${pid}/fdinfo/${fd}`))?.[1] ?? "";
    return (Number.parseInt(flags, 8) & ACCESS_MODE) !== READ_ONLY;
  });
}

/** Block devices have many names, each with an inode of its own. */
function isSame(one: Stats, other: Stats): boolean {
  if (one.isBlockDevice() || other.isBlockDevice()) {
    return one.isBlockDevice() && other.isBlockDevice() && one.rdev === other.rdev;
  }
  return one.dev === other.dev && one.ino === other.ino;
}

// Processes come and go while they are looked at.

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function textOf(path: string): string {
  try {
    // In this encoding Node makes one call of it, three times as fast: there may be thousands of processes.
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

function statusOf(path: string): Stats | undefined {
  try {
    return statSync(path);
  } catch {
    return undefined;
  }
}
