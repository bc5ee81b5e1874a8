/**
 * Real VHDs that Windows wrote. They are test data inside published packages, which stay where their clients put them:
 * in the tool cache of this machine, fetched once. None of it is part of this project.
 */

import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { z } from "zod";
import { sha256 } from "./data.ts";
import { run } from "./run.ts";

const FETCH_SECONDS = 90;

/** Where set-up keeps what one machine needs once; the same rule as in `scripts/env`. */
export const tools: string =
  process.env.TAPVHD_TOOLS ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "tapvhd");

export interface WindowsImage {
  readonly name: string;
  readonly type: "dynamic" | "fixed";
  /** Bytes. */
  readonly size: number;
  /** Of the VHD file. */
  readonly sha256: string;
  readonly fetch: (directory: string) => Promise<Buffer>;
}

/** From the source distribution of PyPI `dissect.hypervisor` (Fox-IT, AGPL-3.0). Later ones leave the data out. */
function fromDissect(name: string): WindowsImage["fetch"] {
  return async (directory) => {
    const version = "3.12";
    await run(
      "python3",
      ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", `dissect.hypervisor==${version}`],
      { cwd: directory, seconds: FETCH_SECONDS },
    );
    const root = `dissect.hypervisor-${version}`;
    const member = `${root}/tests/data/${name}.gz`;
    await run("tar", ["-xzf", `${root}.tar.gz`, member], { cwd: directory });
    return gunzipSync(readFileSync(join(directory, member)));
  };
}

const metadataSchema = z.object({ packages: z.array(z.object({ name: z.string(), manifest_path: z.string() })) });

/** From the crate `vhd` 0.1.1 (Albert Hui, Apache-2.0). */
function fromCrate(name: string): WindowsImage["fetch"] {
  return async (directory) => {
    const manifest = '[package]\nname = "fetch"\nedition = "2021"\n[lib]\npath = "lib.rs"\n';
    writeFileSync(join(directory, "Cargo.toml"), `${manifest}[dependencies]\nvhd = "=0.1.1"\n[workspace]\n`);
    writeFileSync(join(directory, "lib.rs"), "");
    const metadata = await run("cargo", ["metadata", "--quiet", "--format-version", "1"], {
      cwd: directory,
      seconds: FETCH_SECONDS,
    });
    const found = metadataSchema.parse(JSON.parse(metadata)).packages.find((crate) => crate.name === "vhd");
    if (found === undefined) throw new Error("cargo did not fetch the crate vhd");
    return readFileSync(join(found.manifest_path, "../tests/data", name));
  };
}

export const windowsImages: readonly WindowsImage[] = [
  {
    name: "dynamic.vhd",
    type: "dynamic",
    size: 10485760,
    sha256: "c480b888eb23659772bc4b669a79f1850430e74b4ae5011a68195446a49a67e1",
    fetch: fromDissect("dynamic.vhd"),
  },
  {
    name: "fixed.vhd",
    type: "fixed",
    size: 10485760,
    sha256: "80220c551144b2a5d0b1186bd86c48440b0be1c7084550ae057b5b371ee2fdc8",
    fetch: fromDissect("fixed.vhd"),
  },
  {
    name: "ntfs_fixed.vhd",
    type: "fixed",
    size: 4194304,
    sha256: "797a3a1ffb1966b634bef79bf4b1e93641545cce8560b1f81d8d2c3f84b00de2",
    fetch: fromCrate("ntfs_fixed.vhd"),
  },
];

/** The bytes of an image; fetched when this machine does not have it yet. */
export async function windowsImage(image: WindowsImage): Promise<Buffer> {
  const folder = join(tools, "fixtures");
  const path = join(folder, image.name);
  if (!existsSync(path)) {
    mkdirSync(folder, { recursive: true });
    const work = mkdtempSync(join(folder, "fetch-"));
    try {
      writeFileSync(join(work, image.name), await image.fetch(work));
      renameSync(join(work, image.name), path);
    } finally {
      rmSync(work, { recursive: true, force: true });
    }
  }
  const bytes = readFileSync(path);
  if (sha256(bytes) !== image.sha256) throw new Error(`${path} is not the image that was published`);
  return bytes;
}
