// Runs cases one after another: prints a line for each, and ends with 1 if one failed.

export async function run(cases) {
  let failed = 0;
  for (const [name, one] of Object.entries(cases)) {
    try {
      await one();
      console.log(`ok      ${name}`);
    } catch (error) {
      failed++;
      console.log(`FAILED  ${name}\n${error.stack}`);
    }
  }
  console.log(`${Object.keys(cases).length - failed} of ${Object.keys(cases).length} passed`);
  process.exit(failed ? 1 : 0);
}
