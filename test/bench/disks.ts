/** The disks of a session: which image files each contender has, and what is known of them. */

import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Case } from "./cases.ts";
import { chainFiles, makeChain } from "./chains.ts";
import type { ContenderKind } from "./contenders.ts";
import { clean, cool, copyFile, EMPTY_BYTES, makeVhd, SMALL_BYTES, warm, writeContent } from "./images.ts";
import { LARGEST_ALIGN, LARGEST_BYTES, makeLargest, warmLargest } from "./large-images.ts";

/** How large a disk is, and at multiples of what it is accessed. */
export interface Shape {
  readonly diskBytes: number;
  readonly alignBytes: number;
}

export class Disks {
  readonly #bytes: number;
  readonly #folder: string;
  readonly #scratch: string;
  /** All that are kept. */
  readonly #files = new Set<string>();

  /** Filled disks have `bytes` bytes. `scratch` is for fragmented images, `folder` for all others. */
  constructor(bytes: number, folder: string, scratch: string) {
    this.#bytes = bytes;
    this.#folder = folder;
    this.#scratch = scratch;
  }

  /** A raw file with what is on the filled disks. */
  get content(): string {
    return join(this.#folder, "content");
  }

  shape({ image, blockBytes }: Case): Shape {
    switch (image) {
      case "filled":
      case "trimmed":
        return { diskBytes: this.#bytes, alignBytes: blockBytes };
      case "empty":
        return { diskBytes: EMPTY_BYTES, alignBytes: blockBytes };
      case "several":
        return { diskBytes: SMALL_BYTES, alignBytes: blockBytes };
      case "largest":
        return { diskBytes: LARGEST_BYTES, alignBytes: LARGEST_ALIGN };
    }
  }

  /**
   * Where a contender's disks are. It has its own, but for several at once: then it is alone with those of its format; and
   * for the largest, which is only read.
   */
  images(kind: ContenderKind, { image, disks }: Case): string[] {
    const suffix = kind.format === "vhd" ? "vhd" : "raw";
    switch (image) {
      case "filled":
        return [join(this.#folder, `${kind.name}.${suffix}`)];
      case "trimmed":
        return [join(this.#folder, `${kind.name}.trimmed.${suffix}`)];
      case "empty":
        return [join(this.#scratch, `${kind.name}.${suffix}`)];
      case "several":
        return Array.from({ length: disks }, (_, index) => join(this.#folder, `small.${index}.${suffix}`));
      case "largest":
        return [join(this.#scratch, `largest.${suffix}`)];
    }
  }

  /** Makes what these contenders need for these cases. This project's programs are in `commands`. */
  async prepare(kinds: readonly ContenderKind[], cases: readonly Case[], commands: string): Promise<void> {
    const stored = kinds.filter(({ format }) => format !== "none");
    await writeContent(this.content, this.#bytes);
    const vhds: Partial<Record<Case["image"], string>> = {};
    for (const one of cases.filter(({ image }) => image !== "empty")) {
      for (const kind of stored.filter(({ images }) => images.includes(one.image))) {
        for (const file of this.images(kind, one).filter((path) => !this.#files.has(path))) {
          for (const part of chainFiles(file, kind.chain)) {
            this.#files.add(part);
          }
          if (one.image === "largest") {
            makeLargest(file);
          } else if (kind.chain !== undefined) {
            await makeChain(this.content, file, kind.chain, this.#bytes);
          } else if (kind.format === "raw") {
            await copyFile(this.content, file, this.shape(one).diskBytes);
          } else {
            vhds[one.image] ??= await this.#vhd(one, commands);
            await copyFile(vhds[one.image] ?? "", file);
          }
          await Promise.all(chainFiles(file, kind.chain).map(clean));
        }
      }
    }
    await Promise.all(Object.values(vhds).map((file) => rm(file, { force: true })));
  }

  /** Has the page cache hold nothing of them. */
  async cool(): Promise<void> {
    for (const file of this.#files) {
      await cool(file);
    }
  }

  /** Has the page cache hold what a case reads and writes. */
  async warm(one: Case, kinds: readonly ContenderKind[]): Promise<void> {
    if (one.image === "empty") {
      return;
    }
    const files = kinds
      .filter(({ format }) => format !== "none")
      .flatMap((kind) => this.images(kind, one).flatMap((image) => chainFiles(image, kind.chain)));
    for (const file of new Set(files)) {
      if (one.image === "largest") {
        warmLargest(file);
      } else {
        await warm(file);
      }
    }
  }

  /** A VHD to copy from. */
  async #vhd(one: Case, commands: string): Promise<string> {
    const { diskBytes } = this.shape(one);
    const [raw, vhd] = [join(this.#folder, "model"), join(this.#folder, `model.${one.image}.vhd`)];
    await copyFile(this.content, raw, diskBytes);
    await makeVhd(raw, vhd, diskBytes, commands);
    await rm(raw);
    return vhd;
  }
}
